// Asking the service. Every answer is JSON; every failure is an Error with one line for a person,
// and silence is a failure, too.

// How long an answer may take. The service gives its database 20 s and then says so itself.
export const SOON_MS = 5000, AT_LAST_MS = 30000;

// Answers of one kind of question: a new question makes the one before pointless.
export class Question {
  constructor(path) {
    this.path = path;
    this.running = null;
  }

  // Gives the answer, or null if a newer question has taken its place.
  async ask(parameters) {
    this.running?.abort();
    const mine = new AbortController();
    this.running = mine;
    try {
      const answer = await get(this.path, parameters, { signal: mine.signal });
      return this.running === mine ? answer : null;
    } catch (error) {
      if (this.running !== mine) return null;
      throw error;
    } finally {
      if (this.running === mine) this.running = null;
    }
  }

  get busy() { return this.running !== null; }
}

// How long not to ask after failures: at first `first` ms, then twice as long each time, to `most`.
export class Pause {
  constructor(first, most) {
    Object.assign(this, { first, most, last: 0, until: 0 });
  }

  // Returns how long it is.
  begin() {
    this.last = Math.min(this.most, this.last ? this.last * 2 : this.first);
    this.until = performance.now() + this.last;
    return this.last;
  }

  // Returns whether there was one.
  end() {
    const was = this.last > 0;
    this.last = this.until = 0;
    return was;
  }

  get over() { return performance.now() >= this.until; }
}

export async function get(path, parameters = {}, { signal = null, within = AT_LAST_MS } = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined) query.set(name, value);
  }
  const text = query.toString();
  const limit = AbortSignal.timeout(within);
  const failed = (error, why) => {
    if (signal?.aborted) return error;
    return new Error(limit.aborted ? `llama-web does not answer: no ${path} within ${within / 1000} s; trying again` : why);
  };
  let response;
  try {
    response = await fetch(`/api/v1/${path}${text ? `?${text}` : ""}`, { signal: signal ? AbortSignal.any([signal, limit]) : limit });
  } catch (error) {
    throw failed(error, "llama-web does not answer; trying again");
  }
  let answer;
  try {
    answer = await response.json();
  } catch (error) {
    throw failed(error, `${path}: answer ${response.status} is not JSON`);
  }
  if (!response.ok) {
    const error = new Error(answer.error ?? `${path}: answer ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return answer;
}
