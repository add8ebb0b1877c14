// Asking the service. Every answer is JSON; every failure is an Error with one line for a person.

const TIMEOUT_MS = 60000;

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
    const timer = setTimeout(() => mine.abort(), TIMEOUT_MS);
    try {
      const answer = await get(this.path, parameters, mine.signal);
      return this.running === mine ? answer : null;
    } catch (error) {
      if (this.running !== mine) return null;
      if (error.name === "AbortError") throw new Error(`${this.path}: no answer within ${TIMEOUT_MS / 1000} s`);
      throw error;
    } finally {
      clearTimeout(timer);
      if (this.running === mine) this.running = null;
    }
  }

  get busy() { return this.running !== null; }
}

export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined) query.set(name, value);
  }
  const text = query.toString();
  let response;
  try {
    response = await fetch(`/api/v1/${path}${text ? `?${text}` : ""}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("llama-web does not answer; trying again");
  }
  let answer;
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`${path}: answer ${response.status} is not JSON`);
  }
  if (!response.ok) {
    const error = new Error(answer.error ?? `${path}: answer ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return answer;
}
