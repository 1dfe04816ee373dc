// The page: the list of videos, or one video while it is made. Read this first.

import { byId } from "./dom.js";
import { listPage } from "./list.js";
import { videoPage } from "./video.js";

const main = byId("main");

function open(template) {
  main.replaceChildren(byId(template).content.cloneNode(true));
}

byId("home").href = document.baseURI;
// The base address is another page's, so a bare "#main" would leave this one.
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

const id = /\/videos\/([^/]+)\/?$/.exec(location.pathname)?.[1];
if (id === undefined) {
  open("list-view");
  listPage();
} else {
  open("video-view");
  videoPage(decodeURIComponent(id));
}
