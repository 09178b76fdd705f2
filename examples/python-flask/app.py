"""Counts the words that it was sent."""

import threading
from collections import Counter

from flask import Flask, jsonify, request

MAX_WORDS = 10_000

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
words: Counter[str] = Counter()
lock = threading.Lock()


@app.get("/")
def most_common():
    """The ten most frequent words."""
    with lock:
        return jsonify(framework="flask", words=dict(words.most_common(10)))


@app.post("/")
def count():
    """Counts the words of the body."""
    with lock:
        for word in request.get_data(as_text=True).lower().split():
            if word in words or len(words) < MAX_WORDS:
                words[word] += 1
        return jsonify(distinct=len(words))
