"""A loopback server that speaks the chat completions protocol, and fails on request."""

import email.message
import http.server
import json
import threading
from collections.abc import Callable


class ChatServer:
    """Context manager; `url` is what `--endpoint` takes.

    Attributes:
      faults: answers to the next requests in place of completions: (status, headers, text), or
        "cut" for a connection that breaks.
      requests: bodies of all requests so far.
      headers: headers of all requests so far.
    """

    def __init__(self, answer: Callable[[dict], str]):
        self._answer = answer
        self.faults: list[tuple[int, dict[str, str], str] | str] = []
        self.requests: list[dict] = []
        self.headers: list[email.message.Message] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "ChatServer":
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                outer._handle(self)

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _handle(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(request)
            self.headers.append(handler.headers)
            fault = self.faults.pop(0) if self.faults else None
        if fault == "cut":
            handler.close_connection = True
            return
        headers = {"Content-Type": "application/json"}
        status, headers, text = fault or (200, headers, self._completion(request))
        if handler.path != "/v1/chat/completions":
            status, text = 404, "no such path"
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text.encode())

    def _completion(self, request: dict) -> str:
        answer = self._answer(request)
        prompt = "".join(message["content"] for message in request["messages"])
        usage = {
            "prompt_tokens": len(prompt.split()),
            "completion_tokens": len(answer.split()),
        }
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}}
        return json.dumps({"choices": [choice], "usage": usage})
