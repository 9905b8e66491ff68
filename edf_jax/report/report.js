"use strict";
for (const slider of document.querySelectorAll("input[data-compare]")) {
  const images = document.getElementById(slider.dataset.compare);
  const apply = () => images.style.setProperty("--share", slider.value + "%");
  slider.addEventListener("input", apply);
  apply();
}

const historyData = document.getElementById("history-data");
if (historyData) {
  const frames = JSON.parse(historyData.textContent);
  const slider = document.getElementById("history-step");
  const play = document.getElementById("history-play");
  const show = () => {
    const frame = frames[slider.value];
    document.getElementById("history-images").src = frame.images;
    document.getElementById("history-change").src = frame.change;
    document.getElementById("history-label").textContent =
      `iteration ${frame.step}, pixels changed by ${frame.mean_change} on average`;
  };
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Stop";
    slider.value = 0;
    show();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, 700);
  });
  slider.addEventListener("input", () => { stop(); show(); });
  show();
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}
document.documentElement.dataset.ready = "yes";
