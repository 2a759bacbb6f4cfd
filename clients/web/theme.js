// Runs before the first paint (a classic script in <head>), so that a chosen theme never flashes the other one.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("headrace.theme");
  } catch {
    // Storage is off: the page follows the system's colours.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
