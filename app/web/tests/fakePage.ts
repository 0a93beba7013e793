// A document for components, as far as Preact needs one. As in a browser, an element that is disabled or removed loses the focus.

type Listener = (event: object) => void;

class Node {
  parentNode: FakeElement | null = null;
  constructor(
    readonly nodeType: number,
    public data = "",
  ) {}

  get nextSibling(): Node | null {
    const all = this.parentNode?.childNodes ?? [];
    return all[all.indexOf(this) + 1] ?? null;
  }

  get textContent(): string {
    return this.data;
  }

  remove(): void {
    const all = this.parentNode?.childNodes ?? [];
    all.splice(all.indexOf(this), 1);
    this.parentNode = null;
  }
}

/** An element of the page. Attributes are as they were given: `aria-disabled` is "true", a handler is called by `fire`. */
export class FakeElement extends Node {
  readonly childNodes: Node[] = [];
  readonly given = new Map<string, string>();
  readonly listeners = new Map<string, Listener>();
  readonly style = { cssText: "", setProperty: (): void => {} };
  readonly ownerDocument = page;

  constructor(readonly localName: string) {
    super(1);
  }

  get firstChild(): Node | null {
    return this.childNodes[0] ?? null;
  }

  override get textContent(): string {
    return this.childNodes.map((one) => one.textContent).join("");
  }

  get attributes(): { name: string; value: string }[] {
    return [...this.given].map(([name, value]) => ({ name, value }));
  }

  setAttribute(name: string, value: unknown): void {
    this.given.set(name, String(value));
    if (name === "disabled") this.blur();
  }

  removeAttribute(name: string): void {
    this.given.delete(name);
  }

  addEventListener(name: string, listener: Listener): void {
    this.listeners.set(name, listener);
  }

  removeEventListener(name: string): void {
    this.listeners.delete(name);
  }

  insertBefore(node: Node, before: Node | null): Node {
    node.parentNode?.childNodes.splice(node.parentNode.childNodes.indexOf(node), 1);
    node.parentNode = this;
    this.childNodes.splice(before === null ? this.childNodes.length : this.childNodes.indexOf(before), 0, node);
    return node;
  }

  focus(): void {
    if (!this.given.has("disabled")) page.focused = this;
  }

  private before: FakeElement | null = null;

  /** Opens a window: the focus goes into it, and back when it is closed, but not when the window is only taken away. */
  showModal(): void {
    this.before = page.focused;
    page.focused = this;
  }

  close(): void {
    if (this.parentNode) this.before?.focus();
    this.before = null;
  }

  private blur(): void {
    if (page.focused === this) page.focused = null;
  }

  /** Every element below this one, in the order of the page. */
  all(): FakeElement[] {
    const own = this.childNodes.filter((one): one is FakeElement => one instanceof FakeElement);
    return own.flatMap((one) => [one, ...one.all()]);
  }

  /** The first element with this name whose text has these words. */
  find(name: string, words = ""): FakeElement {
    const found = this.all().find((one) => one.localName === name && one.textContent.includes(words));
    if (!found) throw new Error(`there is no ${name} with "${words}" in "${this.textContent}"`);
    return found;
  }

  /** Calls the handler of an event, as Preact calls it. Returns whether it prevented what the browser does. */
  fire(type: string, event: object = {}): boolean {
    let prevented = false;
    const preventDefault = () => {
      prevented = true;
    };
    this.listeners.get(type)?.call(this, { type, currentTarget: this, target: this, preventDefault, ...event });
    return prevented;
  }

  /** Focuses a button and presses it, unless it is disabled. Returns whether the browser would send its form. */
  press(): boolean {
    this.focus();
    return !this.given.has("disabled") && !this.fire("click");
  }
}

class Page {
  /** The element with the focus, wherever it was removed from. */
  focused: FakeElement | null = null;
  readonly hidden = false;
  readonly nodeType = 9;

  createElementNS(_namespace: string, name: string): FakeElement {
    return new FakeElement(name);
  }

  querySelector(): null {
    return null;
  }

  createTextNode(data: string): Node {
    return new Node(3, data);
  }

  /** The element with the focus; null where it is not on the page any more. */
  activeIn(root: FakeElement): FakeElement | null {
    return root.all().find((one) => one === this.focused) ?? null;
  }
}

export const page = new Page();

Object.assign(globalThis, { document: page });
