(() => {
  "use strict";
  const root = document.documentElement;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const SECONDS = 7;

  // A player has a variable --now, the number of codes so far, and --frame, 0 to 1, for strips of frames.
  function makePlayer(player) {
    const steps = Number(player.dataset.steps);
    const [button, slider, output] = player.querySelectorAll(".play, input, output");
    const strips = [...player.querySelectorAll(".strip")];
    const paths = [...player.querySelectorAll("svg.path")];
    let now = steps, before = 0, running = 0;

    function show() {
      const codes = Math.round(now);
      player.style.setProperty("--now", codes);
      slider.value = codes;
      output.textContent = `${codes} of ${steps} codes`;
      for (const strip of strips) {
        const last = strip.naturalHeight / strip.naturalWidth - 1;
        const frame = Math.ceil((codes / steps) * (last + 1)) - 1;
        strip.style.setProperty("--frame", last > 0 ? Math.max(0, frame) / last : 1);
        strip.classList.toggle("blank", frame < 0);
      }
      for (const path of paths) {
        const cell = path.querySelectorAll(".cover")[Math.max(0, codes - 1)];
        const head = path.querySelector(".head");
        head.setAttribute("x", cell.getAttribute("x"));
        head.setAttribute("y", cell.getAttribute("y"));
      }
    }
    function stop() {
      cancelAnimationFrame(running);
      running = 0;
      player.dataset.state = "paused";
      button.firstElementChild.textContent = "▶";
      button.setAttribute("aria-label", button.getAttribute("aria-label").replace("Pause", "Play"));
    }
    function tick(time) {
      now = Math.min(steps, now + ((time - before) / 1000) * (steps / SECONDS));
      before = time;
      show();
      if (now < steps) running = requestAnimationFrame(tick);
      else stop();
    }
    function play() {
      if (now >= steps) now = 0;
      before = performance.now();
      player.dataset.state = "playing";
      button.firstElementChild.textContent = "❚❚";
      button.setAttribute("aria-label", button.getAttribute("aria-label").replace("Play", "Pause"));
      running = requestAnimationFrame(tick);
    }
    player.querySelector(".controls").hidden = false;
    player.dataset.state = "paused";
    button.addEventListener("click", () => (running ? stop() : play()));
    slider.addEventListener("input", () => { stop(); now = Number(slider.value); show(); });
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      if (!still.matches && !running && now === steps) play();
    }, { rootMargin: "-25% 0px" }).observe(player);
  }

  function makeTheme(button) {
    const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const label = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`); };
    button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
    button.hidden = false;
    label();
  }

  function makeCopy(button) {
    if (!navigator.clipboard) return;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  document.querySelectorAll(".player").forEach(makePlayer);
  document.querySelectorAll(".theme").forEach(makeTheme);
  document.querySelectorAll(".copy").forEach(makeCopy);
})();
