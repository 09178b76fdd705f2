const express = require("express");

const app = express();
const notes = [];

app.use(express.json({ limit: "64kb" }));
app.get("/", (request, response) => response.json({ framework: "express", notes: notes.length }));
app.get("/notes", (request, response) => response.json(notes));
app.post("/notes", (request, response) => {
  if (typeof request.body.text !== "string") return response.status(400).json({ error: "text is missing" });
  if (notes.length >= 1000) return response.status(507).json({ error: "1000 notes are enough" });
  const note = { id: notes.length + 1, text: request.body.text };
  notes.push(note);
  response.status(201).json(note);
});

const server = app.listen(8080, "0.0.0.0", () => console.log("node-express on port 8080"));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
