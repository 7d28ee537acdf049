import type { JSX } from "preact";

// Lines on a square of 24.
const PATHS = {
  add: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  settings: "M4 8h8M18 8h2M4 16h2M12 16h8M15 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5zM9 13.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5z",
  more: "M5.5 11.5v1M12 11.5v1M18.5 11.5v1M5 12h1M11.5 12h1M18 12h1",
  send: "M12 19V5M6 11l6-6 6 6",
  copy: "M9 9h10v11H9zM15 9V5H5v11h4",
  retry: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4.5h-4.5",
  edit: "M5 19l.8-3.6L15.6 5.6l2.8 2.8-9.8 9.8L5 19zM13.5 7.7l2.8 2.8",
  close: "M6 6l12 12M18 6L6 18",
  down: "M12 5v14M6 13l6 6 6-6",
  server: "M5 5h14v6H5zM5 13h14v6H5zM8.5 8h.01M8.5 16h.01",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v1M12 20v1M3 12h1M20 12h1M5.6 5.6l.7.7M17.7 17.7l.7.7M5.6 18.4l.7-.7M17.7 6.3l.7-.7",
  dark: "M20 14.5A8.2 8.2 0 0 1 9.5 4a8.2 8.2 0 1 0 10.5 10.5z",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}

export function Mark(): JSX.Element {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="9" />
      <circle cx="11" cy="12" r="3" />
      <circle cx="21" cy="12" r="3" />
      <circle cx="16" cy="21" r="3" />
    </svg>
  );
}

interface IconButtonProps {
  icon: IconName;
  label: string;
  onClick: () => void;
  class?: string;
  expanded?: boolean;
}

export function IconButton({ icon, label, onClick, class: more, expanded }: IconButtonProps): JSX.Element {
  return (
    <button type="button" class={`icon-button ${more ?? ""}`} aria-label={label} title={label} aria-expanded={expanded} onClick={onClick}>
      <Icon name={icon} />
    </button>
  );
}
