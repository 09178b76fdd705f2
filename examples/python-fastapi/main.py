"""A to-do list in memory."""

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

MAX_ITEMS = 1_000

app = FastAPI(title="To-do")
items: dict[int, str] = {}


class Item(BaseModel):
    """What is to be done."""

    text: str = Field(min_length=1, max_length=500)


@app.get("/")
def overview() -> dict[str, object]:
    """How many items there are."""
    return {"framework": "fastapi", "items": len(items)}


@app.get("/items/{number}")
def read(number: int) -> dict[str, object]:
    """One item."""
    if number not in items:
        raise HTTPException(404, f"no item {number}")
    return {"number": number, "text": items[number]}


@app.post("/items", status_code=201)
def add(item: Item) -> dict[str, object]:
    """Adds an item."""
    if len(items) >= MAX_ITEMS:
        raise HTTPException(507, f"{MAX_ITEMS} items are enough")
    number = len(items) + 1
    items[number] = item.text
    return {"number": number, "text": item.text}
