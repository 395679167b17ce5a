// The form without leaving the page: upload with progress, wait for the job, look at it. Without this script the form works as well.
const { Viewer, ServerSource, element } = globalThis.medseg3dViewer;
const POLL_MILLISECONDS = 500;

const form = document.querySelector("form");
const said = document.getElementById("said");
const bar = document.getElementById("bar");
const results = document.getElementById("results");
const stage = document.getElementById("stage");
const sources = [];

function say(text, isProblem = false) {
  said.textContent = text;
  said.className = isProblem ? "warn" : "soft";
}

async function detailOf(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

function sent(data) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "predict?wait=false");
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) bar.value = event.loaded / event.total;
    };
    request.onload = () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        answer = { detail: `The server answered ${request.status}.` };
      }
      if (request.status === 202) resolve(answer);
      else reject(new Error(answer.detail || `The server answered ${request.status}.`));
    };
    request.onerror = () => reject(new Error("The server cannot be reached."));
    request.send(data);
  });
}

async function ended(job) {
  for (;;) {
    const answer = await fetch(`jobs/${job.id}`);
    if (!answer.ok) throw new Error(await detailOf(answer));
    const now = await answer.json();
    if (now.state === "done") return now;
    if (now.state === "failed" || now.state === "dropped") throw new Error(now.message || "The job was dropped.");
    say(now.state === "queued" ? `Waiting, place ${now.place} in the queue.` : `Predicting: ${now.stage || "begins"}.`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
  }
}

async function show(job, name) {
  const answer = await fetch(`jobs/${job.id}/view`);
  if (!answer.ok) throw new Error(await detailOf(answer));
  const scene = await answer.json();
  scene.title = name;
  sources.push(new ServerSource(scene, `jobs/${job.id}/view`));
  results.hidden = false;
  stage.replaceChildren();
  const root = element("div", {});
  stage.append(root);
  root.viewer = new Viewer(root, sources);
  root.viewer.open(sources.length - 1);
  const save = element("a", { href: `jobs/${job.id}/labels`, textContent: `Save the label map of ${name}`, download: "" });
  const drop = element("button", { type: "button", textContent: "Delete it from the server" });
  const line = element("p", { className: "job" }, [save, " ", drop]);
  drop.addEventListener("click", async () => {
    await fetch(`jobs/${job.id}`, { method: "DELETE" });
    line.replaceChildren(`${name} is deleted from the server.`);
  });
  document.getElementById("jobs").prepend(line);
  for (const warning of job.warnings) document.getElementById("jobs").prepend(element("p", { className: "warn", textContent: warning }));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  const data = new FormData(form);
  data.delete("wait");
  data.set("view", "true");
  const name = form.querySelector("input[type=file]").files[0].name;
  button.disabled = true;
  bar.hidden = false;
  bar.value = 0;
  say("Uploading.");
  try {
    const job = await sent(data);
    bar.removeAttribute("value");
    const done = await ended(job);
    const seconds = Object.values(done.seconds).reduce((all, each) => all + each, 0);
    say(`${name}: done in ${seconds.toFixed(1)} seconds.`);
    await show(done, name);
  } catch (problem) {
    say(problem.message, true);
  }
  button.disabled = false;
  bar.hidden = true;
});
form.querySelector("select[name=wait]").parentElement.hidden = true;
