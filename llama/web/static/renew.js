// Brings a part of the page up to date where it stands. What stays as it was is left alone: whoever has
// the focus there, has marked a text or holds the pointer down is not thrown out with every interval,
// and who listens is told what changed and nothing else. What is put in must have no listeners of its own.

export function renew(place, ...parts) {
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  const address = focused?.getAttribute("href");
  const wanted = document.createElement("div");
  wanted.append(...parts);
  become(place, wanted);
  // Links move up and down in lists: the focus goes with what it was on.
  if (!address || focused.getAttribute("href") === address) return;
  [...place.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === address)?.focus({ preventScroll: true });
}

function become(old, wanted) {
  const before = [...old.childNodes], after = [...wanted.childNodes];
  after.forEach((child, n) => {
    const { [n]: was } = before;
    if (!was) old.append(child);
    else if (was.isEqualNode(child)) return;
    else if (was.nodeName !== child.nodeName) was.replaceWith(child);
    else if (was.nodeType === Node.TEXT_NODE) was.data = child.data;
    else {
      for (const { name } of [...was.attributes]) if (!child.hasAttribute(name)) was.removeAttribute(name);
      for (const { name, value } of child.attributes) if (was.getAttribute(name) !== value) was.setAttribute(name, value);
      become(was, child);
    }
  });
  for (const rest of before.slice(after.length)) rest.remove();
}
