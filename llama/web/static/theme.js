// Dark or light, as it was chosen here. Some browsers keep nothing of anybody: then until the page is left.

const NAME = "llama-theme";
let chosen = null;

// Returns "dark", "light" or null.
export function chosenTheme() {
  try {
    return chosen ?? localStorage.getItem(NAME);
  } catch {
    return chosen;
  }
}

export function chooseTheme(theme) {
  chosen = theme;
  try {
    localStorage.setItem(NAME, theme);
  } catch {
    // it is not kept, then
  }
}
