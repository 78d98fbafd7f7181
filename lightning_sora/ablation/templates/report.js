"use strict";
for (const button of document.querySelectorAll("[data-tab]")) {
  button.addEventListener("click", () => {
    for (const other of button.parentElement.children) {
      const chosen = other === button;
      other.setAttribute("aria-pressed", String(chosen));
      document.getElementById(other.dataset.tab).hidden = !chosen;
    }
  });
}
const videos = [...document.querySelectorAll("video")];
const play = document.getElementById("play");
const seek = document.getElementById("seek");
if (videos.length && play && seek) {
  const lead = videos[0];
  let playing = true;
  const start = () => Promise.all(videos.map((video) => video.play().catch(() => undefined)));
  const keepStep = () => {
    for (const video of videos) {
      if (Math.abs(video.currentTime - lead.currentTime) > 0.08) video.currentTime = lead.currentTime;
    }
    if (lead.duration && document.activeElement !== seek) seek.value = String(lead.currentTime / lead.duration);
    requestAnimationFrame(keepStep);
  };
  play.addEventListener("click", () => {
    playing = !playing;
    play.textContent = playing ? "Pause" : "Play";
    if (playing) start(); else for (const video of videos) video.pause();
  });
  seek.addEventListener("input", () => {
    for (const video of videos) if (video.duration) video.currentTime = Number(seek.value) * video.duration;
  });
  start().then(() => requestAnimationFrame(keepStep));
}
