import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";
import { getState } from "./api";

const PATIENCE_MS = 1500;

/** Why there is no answer yet. */
async function reason(model: string): Promise<string> {
  const state = (await getState()).models.find((one) => one.name === model);
  if (state?.state === "opening") return "The model is being opened.";
  if (state?.queued) return `${state.queued} ${state.queued === 1 ? "request waits" : "requests wait"} on this server.`;
  return "The model reads what you wrote.";
}

export function Waiting({ model, beganMs }: { model: string; beganMs: number }): JSX.Element {
  const text = useSignal("");
  useEffect(() => {
    const timer = setInterval(() => {
      if (performance.now() - beganMs < PATIENCE_MS) return;
      reason(model).then(
        (found) => (text.value = found),
        () => undefined, // the answer itself will tell what is wrong
      );
    }, 1000);
    return () => clearInterval(timer);
  }, [model, beganMs]);
  return (
    <p class="waiting">
      <span class="dots" role="img" aria-label="Waiting for the answer">
        <i />
        <i />
        <i />
      </span>
      {text.value}
    </p>
  );
}
