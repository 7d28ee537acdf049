import type { JSX } from "preact";
import { beginNew, conversations, currentId, runs } from "./chats";
import { Icon, IconButton, Mark } from "./icons";
import { focusComposer, sidebarOpen, theme, THEMES, view } from "./screen";

const DAY_MS = 86400000;

/** "Today", "Yesterday", "Last 7 days", or the month. */
function period(time: number): string {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY_MS) return "Yesterday";
  if (time >= today - 7 * DAY_MS) return "Last 7 days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

function List(): JSX.Element {
  const groups = new Map<string, typeof conversations.value>();
  for (const one of conversations.value)
    groups.set(period(one.changed), [...(groups.get(period(one.changed)) ?? []), one]);
  return (
    <div class="list">
      {groups.size === 0 && <p class="hint">Your conversations will be listed here.</p>}
      {[...groups].map(([name, members]) => (
        <section key={name} aria-label={name}>
          <h2>{name}</h2>
          <ul>
            {members.map((one) => {
              const here = view.value === "chat" && one.id === currentId.value;
              return (
                <li key={one.id}>
                  <a href={`#/c/${one.id}`} aria-current={here ? "page" : undefined} onClick={() => (sidebarOpen.value = false)}>
                    <span class="ellipsis">{one.title}</span>
                    {runs.value[one.id] && <span class="pulse" role="img" aria-label="is being answered" />}
                  </a>
                </li>
              );
            })}
          </ul>
        </section>
      ))}
    </div>
  );
}

function ThemeButton(): JSX.Element {
  const next = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "system";
  const names = { system: "as the system", light: "light", dark: "dark" };
  return <IconButton icon={theme.value} label={`Colours: ${names[theme.value]}; switch to ${names[next]}`} onClick={() => (theme.value = next)} />;
}

export function Sidebar(): JSX.Element {
  return (
    <>
      <nav class={`sidebar ${sidebarOpen.value ? "open" : ""}`} id="sidebar" aria-label="Conversations">
        <div class="sidebar-head">
          <a class="brand" href="#/" onClick={beginNew}>
            <Mark />
            consort
          </a>
          <IconButton icon="close" label="Close the list" class="narrow" onClick={() => (sidebarOpen.value = false)} />
        </div>
        <button
          type="button"
          class="new"
          onClick={() => {
            beginNew();
            sidebarOpen.value = false;
            focusComposer();
          }}
        >
          <Icon name="add" />
          New chat
        </button>
        <List />
        <div class="sidebar-foot">
          <a href="#/server" aria-current={view.value === "server" ? "page" : undefined}>
            <Icon name="server" />
            Server
          </a>
          <ThemeButton />
        </div>
      </nav>
      {sidebarOpen.value && <div class="backdrop" onClick={() => (sidebarOpen.value = false)} />}
    </>
  );
}
