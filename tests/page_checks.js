// What a person with weak eyes, a finger, a screen reader or a small screen would trip over, by the letter of WCAG 2.2.
() => {
  const one = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const context = one.getContext("2d", { willReadFrequently: true });
  const shown = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility());
  const start = (element) => element.outerHTML.slice(0, 80);

  // A canvas knows every notation of a colour.
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = (top, under) => [...top.slice(0, 3).map((value, i) => value * top[3] + under[i] * (1 - top[3])), 1];
  const luminance = ([r, g, b]) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [1, 1, 1, 1]);
  };
  const ownText = (element) => [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");

  // 1.4.3: 4.5, or 3 for text of 24 pixels (bold: 18.66) and more. What lies over a picture has no one colour behind it.
  const contrast = [];
  for (const element of shown) {
    const words = ownText(element);
    const isField = element.matches("input, textarea");
    const text = words || (isField && (element.value || element.placeholder));
    if (!text || element.closest(".screen, .thumb, .unseen, .skip, :disabled, [aria-disabled=true]")) continue;
    const style = getComputedStyle(element, isField && !element.value ? "::placeholder" : null);
    const back = behind(element);
    const [dark, bright] = [luminance(over(rgba(style.color), back)), luminance(back)].sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (isLarge ? 3 : 4.5)) contrast.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }

  // 2.5.8: 24 by 24 pixels; what only eyes do not see is clicked by its label.
  const touched = shown.filter((e) => e.matches("a, button, input, select, summary, textarea") && !e.matches(".unseen, .skip"));
  const targets = touched.filter((e) => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height) < 24);

  // 4.1.2: everything that is used has a name.
  const used = shown.filter((e) => e.matches("a, button, input, select, textarea, video, [role=progressbar]"));
  const nameless = used.filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.title));

  // 1.1.1: every picture has words, or says that it needs none.
  const wordless = shown.filter((e) => e.matches("img:not([alt])"));

  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  return {
    contrast,
    targets: targets.map(start),
    names: [...nameless, ...wordless].map(start),
    overflow: wide > 0 ? [`${wide} px`] : [],
  };
}
