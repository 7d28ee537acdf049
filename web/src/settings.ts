/** What a conversation asks for besides its messages. */
export interface Settings {
  system: string;
  effort: string; // reasoning_effort; "": the model's own
  stop: string; // one a line
  numbers: Record<string, number>; // by the name of the request's field; absent: the server's default
}

export interface NumberField {
  name: string;
  label: string;
  hint: string;
  min: number;
  max: number;
  step: number;
  rare?: boolean; // folded away
}

export const NUMBER_FIELDS: readonly NumberField[] = [
  { name: "temperature", label: "Temperature", hint: "0: always the likeliest word", min: 0, max: 5, step: 0.05 },
  { name: "max_tokens", label: "Longest answer", hint: "in tokens", min: 1, max: 1e9, step: 1 },
  { name: "top_p", label: "Top p", hint: "leaves out what is less likely together", min: 0, max: 1, step: 0.01 },
  { name: "seed", label: "Seed", hint: "the same one gives the same answer", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
  { name: "top_k", label: "Top k", hint: "how many of the likeliest; 0: all", min: 0, max: 1e6, step: 1, rare: true },
  { name: "min_p", label: "Min p", hint: "how likely, compared with the likeliest", min: 0, max: 1, step: 0.01, rare: true },
  { name: "repeat_penalty", label: "Repeat penalty", hint: "1 is none", min: 0.01, max: 10, step: 0.01, rare: true },
  { name: "presence_penalty", label: "Presence penalty", hint: "against words that came before", min: -2, max: 2, step: 0.1, rare: true },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "against words that came often", min: -2, max: 2, step: 0.1, rare: true },
];

const NAME = "consort.defaults";

function empty(): Settings {
  return { system: "", effort: "", stop: "", numbers: {} };
}

/** What new conversations begin with. */
export function defaultSettings(): Settings {
  try {
    return { ...empty(), ...(JSON.parse(localStorage.getItem(NAME) ?? "{}") as Partial<Settings>) };
  } catch {
    return empty();
  }
}

export function keepAsDefault(settings: Settings | null): void {
  try {
    if (settings === null) localStorage.removeItem(NAME);
    else localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    // Without storage the defaults are those of the server.
  }
}

/** The fields of a request that stand for the settings, but for the system prompt. */
export function requestFields(settings: Settings): Record<string, unknown> {
  const fields: Record<string, unknown> = { ...settings.numbers };
  const stop = settings.stop.split("\n").filter((line) => line !== "");
  if (stop.length > 0) fields["stop"] = stop;
  if (settings.effort !== "") fields["reasoning_effort"] = settings.effort;
  return fields;
}

/** How many settings differ from the server's own. */
export function settingsChanged(settings: Settings): number {
  const texts = [settings.system, settings.effort, settings.stop].filter((text) => text !== "");
  return texts.length + Object.keys(settings.numbers).length;
}
