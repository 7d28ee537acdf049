/** Asking again and again while somebody looks. */
import { useEffect, useRef } from "preact/hooks";

/** Calls ask at once and then so often, not while the page is hidden; anew when on changes. ask answers false where it need not be called again before the page is shown anew. */
export function usePoll(everyMs: number, ask: () => Promise<boolean | void>, on: unknown): void {
  const latest = useRef(ask);
  latest.current = ask;
  useEffect(() => {
    let timer = 0;
    let asking = false;
    let over = false;
    const next = async (): Promise<void> => {
      if (asking || over || document.hidden) return;
      asking = true;
      clearTimeout(timer);
      const again = await latest.current();
      asking = false;
      if (again !== false && !over) timer = window.setTimeout(() => void next(), everyMs);
    };
    const shown = (): void => void next();
    document.addEventListener("visibilitychange", shown);
    void next();
    return () => {
      over = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [on]);
}
