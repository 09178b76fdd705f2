"""A Dockerfile for a directory that has none, guessed from what lies in it."""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from torpor.images.errors import BuildError

MAX_MANIFEST_BYTES = 1 << 20
_PYTHON_ENTRIES = ("main.py", "app.py", "server.py", "wsgi.py", "asgi.py")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A Dockerfile and what it was guessed from."""

    reason: str
    text: str


def suggest_dockerfile(directory: Path) -> Suggestion | None:
    """A sensible Dockerfile for the application in `directory`, or None if there is no telling."""
    if (directory / "package.json").is_file():
        return _javascript(directory)
    if (directory / "pyproject.toml").is_file() or (directory / "requirements.txt").is_file():
        return _python(directory)
    if (directory / "go.mod").is_file():
        return Suggestion(
            "go.mod",
            "FROM golang:1-bookworm AS build\n"
            "WORKDIR /src\n"
            "COPY . .\n"
            "RUN CGO_ENABLED=0 go build -o /app .\n"
            "\n"
            "FROM debian:bookworm-slim\n"
            "COPY --from=build /app /app\n"
            "EXPOSE 8080\n"
            'CMD ["/app"]\n',
        )
    if (directory / "index.html").is_file():
        return Suggestion(
            "index.html", "FROM nginx:stable\nCOPY . /usr/share/nginx/html\nEXPOSE 80\n"
        )
    return None


def _read(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise BuildError(f"{path}: larger than {MAX_MANIFEST_BYTES:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BuildError(f"{path}: no text: byte {error.start} is not UTF-8") from error


def _javascript(directory: Path) -> Suggestion:
    path = directory / "package.json"
    try:
        package = json.loads(_read(path))
    except ValueError as error:
        raise BuildError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(package, dict):
        raise BuildError(f"{path}: must be a JSON object")
    scripts = package.get("scripts")
    scripts = scripts if isinstance(scripts, dict) else {}
    entry = package.get("main") or package.get("module")
    candidates = [entry, "server.js", "index.js", "app.js", "index.ts", "server.ts", "src/index.ts"]
    main = next(
        (str(name) for name in candidates if name and (directory / str(name)).is_file()), "index.js"
    )
    is_bun = any((directory / name).exists() for name in ("bun.lock", "bun.lockb", "bunfig.toml"))
    lines = []
    if is_bun or main.endswith(".ts"):
        lines += ["FROM oven/bun:1", "WORKDIR /app", "COPY . .", "RUN bun install --production"]
        if "build" in scripts:
            lines[-1] = "RUN bun install"
            lines.append("RUN bun run build")
        command = ["bun", "run", "start"] if "start" in scripts else ["bun", main]
    else:
        locked = (directory / "package-lock.json").exists()
        install = "npm ci" if locked else "npm install"
        lines += ["FROM node:20-slim", "WORKDIR /app", "COPY . ."]
        lines.append(f"RUN {install}" + ("" if "build" in scripts else " --omit=dev"))
        if "build" in scripts:
            lines.append("RUN npm run build")
        command = ["npm", "start"] if "start" in scripts else ["node", main]
    lines += ["ENV NODE_ENV=production PORT=8080", "EXPOSE 8080", f"CMD {json.dumps(command)}"]
    return Suggestion("package.json", "\n".join(lines) + "\n")


def _python(directory: Path) -> Suggestion:
    requirements = directory / "requirements.txt"
    pyproject = directory / "pyproject.toml"
    project: dict[str, object] = {}
    if pyproject.is_file():
        try:
            table = tomllib.loads(_read(pyproject)).get("project")
        except tomllib.TOMLDecodeError as error:
            raise BuildError(f"{pyproject}: {error}") from error
        project = table if isinstance(table, dict) else {}
    wanted = _read(requirements) if requirements.is_file() else ""
    dependencies = project.get("dependencies")
    wanted += "\n".join(map(str, dependencies)) if isinstance(dependencies, list) else ""
    packages = {
        match[1].lower() for match in re.finditer(r"^\s*([A-Za-z0-9][\w.-]*)", wanted, re.MULTILINE)
    }
    lines = ["FROM python:3.11-slim", "ENV PYTHONUNBUFFERED=1", "WORKDIR /app", "COPY . ."]
    if requirements.is_file():
        lines.append("RUN pip install --no-cache-dir -r requirements.txt")
    else:
        lines.append("RUN pip install --no-cache-dir .")
    entry = next((name for name in _PYTHON_ENTRIES if (directory / name).is_file()), None)
    scripts = project.get("scripts")
    module = entry.removesuffix(".py") if entry else "main"
    if {"fastapi", "starlette", "litestar"} & packages and "uvicorn" in packages and entry:
        command = ["uvicorn", f"{module}:app", "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104
    elif "flask" in packages and entry:
        command = ["flask", "--app", module, "run", "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104
    elif isinstance(scripts, dict) and scripts:
        command = [str(next(iter(scripts)))]
    else:
        command = ["python", entry or "main.py"]
    lines += ["EXPOSE 8080", f"CMD {json.dumps(command)}"]
    found = "requirements.txt" if requirements.is_file() else "pyproject.toml"
    return Suggestion(found, "\n".join(lines) + "\n")
