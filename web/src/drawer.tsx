import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { conversations, current, currentSettings, keepingError, setSettings } from "./chats";
import { download } from "./clipboard";
import { Dialog } from "./dialog";
import { key, setKey } from "./key";
import { announcement, dialogOpen, drawerOpen } from "./screen";
import { defaultSettings, keepAsDefault, NUMBER_FIELDS, settingsChanged, type NumberField } from "./settings";

function change(fields: Partial<typeof currentSettings.value>): void {
  setSettings({ ...currentSettings.value, ...fields });
}

function setNumber(name: string, text: string): void {
  const numbers = { ...currentSettings.value.numbers };
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) delete numbers[name];
  else numbers[name] = value;
  change({ numbers });
}

function NumberInput({ field }: { field: NumberField }): JSX.Element {
  const value = currentSettings.value.numbers[field.name];
  const wrong = value !== undefined && (value < field.min || value > field.max);
  return (
    <div class="field">
      <label for={`set-${field.name}`}>{field.label}</label>
      <input
        id={`set-${field.name}`}
        type="number"
        inputMode="decimal"
        min={field.min}
        max={field.max}
        step={field.step === 1 ? 1 : "any"}
        placeholder="default"
        value={value ?? ""}
        aria-describedby={`hint-${field.name}`}
        aria-invalid={wrong}
        onChange={(event) => setNumber(field.name, event.currentTarget.value)}
      />
      <p class="hint" id={`hint-${field.name}`}>
        {wrong ? `From ${field.min} to ${field.max}` : field.hint}
      </p>
    </div>
  );
}

function Numbers({ rare }: { rare: boolean }): JSX.Element {
  return (
    <>
      {NUMBER_FIELDS.filter((field) => (field.rare ?? false) === rare).map((field) => (
        <NumberInput key={field.name} field={field} />
      ))}
    </>
  );
}

function Rare(): JSX.Element {
  const settings = currentSettings.value;
  return (
    <details>
      <summary>More</summary>
      <div class="fields">
        <Numbers rare />
        <div class="field">
          <label for="set-effort">Reasoning</label>
          <select id="set-effort" value={settings.effort} onChange={(event) => change({ effort: event.currentTarget.value })} aria-describedby="hint-effort">
            <option value="">default</option>
            <option value="low">low</option>
            <option value="medium">medium</option>
            <option value="high">high</option>
          </select>
          <p class="hint" id="hint-effort">
            for models that can be told
          </p>
        </div>
      </div>
      <label for="set-stop">Stop texts</label>
      <textarea
        id="set-stop"
        rows={2}
        placeholder="One a line; the answer ends before it"
        value={settings.stop}
        onInput={(event) => change({ stop: event.currentTarget.value })}
      />
    </details>
  );
}

function Inputs(): JSX.Element {
  return (
    <>
      <label for="set-system">System prompt</label>
      <textarea
        id="set-system"
        rows={4}
        placeholder="Who the model is, and how it should answer"
        value={currentSettings.value.system}
        onInput={(event) => change({ system: event.currentTarget.value })}
      />
      <div class="fields">
        <Numbers rare={false} />
      </div>
      <Rare />
    </>
  );
}

function Defaults(): JSX.Element {
  const said = useSignal("");
  const tell = (text: string): void => {
    said.value = text;
    announcement.value = text;
  };
  return (
    <div class="row">
      <button
        type="button"
        onClick={() => {
          keepAsDefault(currentSettings.value);
          tell("New chats begin with these settings.");
        }}
      >
        Use for new chats
      </button>
      <button
        type="button"
        disabled={settingsChanged(currentSettings.value) === 0}
        onClick={() => {
          keepAsDefault(null);
          setSettings(defaultSettings());
          tell("All settings are the defaults of the server and the model.");
        }}
      >
        Reset
      </button>
      <p class="hint">{said.value}</p>
    </div>
  );
}

export function Drawer(): JSX.Element | null {
  if (!drawerOpen.value) return null;
  const n = conversations.value.length;
  const exportAll = (): void => download("consort-conversations.json", "application/json", JSON.stringify(conversations.value, null, 2));
  return (
    <Dialog title="Settings" class="drawer" close={() => (drawerOpen.value = false)}>
      <p class="hint">{current.value === null ? "For the next chat." : "For this conversation, from the next answer on."} What is empty is decided by the server and the model.</p>
      <Inputs />
      <Defaults />
      <h3>Conversations</h3>
      <p class="hint">{keepingError.value || `${n === 1 ? "1 is" : `${n} are`} kept in this browser, and nowhere else.`}</p>
      <div class="row">
        <button type="button" disabled={n === 0} onClick={exportAll}>
          Export all
        </button>
        <button
          type="button"
          class="danger"
          disabled={n === 0}
          onClick={() => {
            drawerOpen.value = false;
            dialogOpen.value = "delete-all";
          }}
        >
          Delete all
        </button>
      </div>
      {key.value !== "" && (
        <>
          <h3>Key</h3>
          <div class="row">
            <button
              type="button"
              onClick={() => {
                setKey("", false);
                drawerOpen.value = false; // the key is asked for next
              }}
            >
              Forget the key
            </button>
          </div>
        </>
      )}
    </Dialog>
  );
}
