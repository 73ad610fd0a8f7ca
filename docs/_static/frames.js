// A cell with the tag `frames` has one picture for each position of a slider. Without a kernel, the page shows one of them.
document.addEventListener("DOMContentLoaded", () => {
  for (const output of document.querySelectorAll(".tag_frames .cell_output")) {
    const pictures = [...output.querySelectorAll("img")];
    if (pictures.length < 2) continue;
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 1, max: pictures.length, value: 1, className: "frames" });
    slider.setAttribute("aria-label", "Position of the slider");
    const show = () => pictures.forEach((picture, i) => { picture.hidden = i !== slider.value - 1; });
    slider.addEventListener("input", show);
    output.prepend(slider);
    show();
  }
});
