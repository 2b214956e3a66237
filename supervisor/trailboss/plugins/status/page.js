"use strict";
(() => {
  const link = document.getElementById("link");
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  let source = null, last = "", timer = 0;

  const say = (state, text) => { link.dataset.live = state; if (link.textContent !== text) link.textContent = text; };

  const localTimes = (root) => {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (!isNaN(at)) { time.textContent = clock.format(at); time.title = at.toLocaleString(); }
    }
  };

  // Change what is there into what shall be there, so that focus, selection and opened details stay.
  const morph = (old, now) => {
    if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName) { old.replaceWith(now); return; }
    if (old.nodeType !== Node.ELEMENT_NODE) { if (old.data !== now.data) old.data = now.data; return; }
    for (const { name } of [...old.attributes]) if (name !== "open" && !now.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of [...now.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    children(old, now);
  };
  const children = (old, now) => {
    const before = [...old.childNodes], after = [...now.childNodes];
    after.forEach((node, index) => index < before.length ? morph(before[index], node) : old.append(node));
    before.slice(after.length).forEach((node) => node.remove());
  };

  const show = (event) => {
    const parts = JSON.parse(event.data);
    for (const [id, html] of Object.entries(parts.parts)) {
      const place = document.getElementById(id);
      if (!place) continue;
      const made = document.createElement("template");
      made.innerHTML = html;
      localTimes(made.content);
      children(place, made.content);
    }
    document.title = parts.title;
    last = clock.format(new Date(parts.at));
    say("yes", "live");
  };

  const open = () => {
    clearTimeout(timer);
    if (source || document.hidden) return;
    source = new EventSource("events?as=page");
    source.addEventListener("page", show);
    source.addEventListener("error", () => {
      say("lost", "connection lost, trying again" + (last ? "; figures of " + last : ""));
      if (source && source.readyState === EventSource.CLOSED) { close(); timer = setTimeout(open, 3000); }
    });
  };
  const close = () => { if (source) source.close(); source = null; };

  // Nobody looks at a hidden page, so nothing is made for it.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); say("no", "paused" + (last ? "; figures of " + last : "")); } else open();
  });
  localTimes(document);
  open();
})();
