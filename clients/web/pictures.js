// Pictures on their way into a message: picked, pasted or dropped, made small enough, shown before they are sent.

import { $, h, iconButton } from "./dom.js";

export const MOST = 8; // pictures of one request, as the server counts
const SENT_AS_IS = 1 << 20; // bytes; larger files are drawn anew
const LONGEST = 2048; // pixels of the longer side of a picture that is drawn anew
const KINDS = new Set(["image/png", "image/jpeg", "image/webp", "image/gif"]);
const URL_SHAPE = /^data:image\/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+=*$/;

/** Only data URLs of pictures, at most as many as a message takes; for whatever was read from a file. */
export const checkedPictures = (raw) =>
  (Array.isArray(raw) ? raw : []).filter((url) => typeof url === "string" && URL_SHAPE.test(url)).slice(0, MOST);

/** The pictures of a message as elements; `tool(index)` may give each a button. */
export const thumbnails = (pictures, tool = () => null) =>
  pictures.map((url, i) =>
    h("span", { class: "picture" }, h("img", { src: url, alt: `Picture ${i + 1}`, decoding: "async" }), tool(i)));

const asUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

/** A file as a data URL that the server reads. Null if this browser cannot show it either. */
export async function pictureUrl(file) {
  if (KINDS.has(file.type) && file.size <= SENT_AS_IS) return asUrl(file);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return null;
  }
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // what is transparent, as the server sees it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.92);
}

/** What the next message will show. `onchange()` after every change, `refuse(words)` where nothing was taken. */
export class Tray {
  constructor({ onchange, refuse }) {
    Object.assign(this, { onchange, refuse });
    this.pictures = [];
    this.sees = false;
    this.element = $("#tray");
    this.input = $("#picture-file");
    $("#attach").addEventListener("click", () => this.input.click());
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      this.input.value = "";
    });
    $("#prompt").addEventListener("paste", (event) => {
      if (this.add(event.clipboardData.files)) event.preventDefault();
    });
    addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault(); // else the browser would leave the page for the file
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) document.body.classList.remove("dropping");
    });
    addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      if (!this.add(event.dataTransfer.files)) this.refuse("Only pictures can be added to a message.");
    });
  }

  /** The model that is served may see or not; the button says which. */
  allow(sees) {
    this.sees = sees;
    $("#attach").hidden = !sees;
  }

  /** True if there was a picture among `files`, whatever becomes of it. */
  add(files) {
    const found = [...files].filter((file) => file.type.startsWith("image/"));
    if (!found.length) return false;
    if (this.sees) this.#take(found);
    else this.refuse("This model reads text alone and takes no pictures.");
    return true;
  }

  async #take(files) {
    for (const file of files) {
      if (this.pictures.length >= MOST) {
        this.refuse(`A message takes at most ${MOST} pictures.`);
        break;
      }
      const url = await pictureUrl(file);
      if (url) this.pictures.push(url);
      else this.refuse(`This browser cannot read ${file.name || "this picture"}.`);
      this.show();
    }
  }

  show() {
    this.element.hidden = !this.pictures.length;
    this.element.replaceChildren(...thumbnails(this.pictures, (i) =>
      iconButton("close", `Remove picture ${i + 1}`, () => {
        this.pictures.splice(i, 1);
        this.show();
        $("#prompt").focus();
      })));
    this.onchange();
  }

  /** All pictures, and none is left. */
  take() {
    const taken = this.pictures;
    this.pictures = [];
    this.show();
    return taken;
  }
}
