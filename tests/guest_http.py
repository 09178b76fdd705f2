"""The beginning of programs for guests that answer HTTP with CPython's own server."""

ANSWERING = """
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
class Answering(BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
"""
