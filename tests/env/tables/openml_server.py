"""A loopback server that answers the `openml` package with one small table, and can misbehave."""

import collections
import gzip
import hashlib
import http.server
import threading

_NAMESPACE = 'xmlns:oml="http://openml.org/openml"'


class OpenMLServer:
    """Context manager; `url` is what `openml.config.server` needs.

    Attributes:
      arff: text of the data file.
      md5: what the description says about it; computed when None.
      faults: kind of request ("description", "file") to a list of faults, one per request:
        "500", "truncated" (fewer bytes than announced) or "hang" (no answer for 30 s).
      requests: paths asked for so far.
    """

    def __init__(self, data_id: int, name: str, arff: str):
        self.data_id, self.name, self.arff = data_id, name, arff
        self.md5: str | None = None
        self.faults: dict[str, list[str]] = collections.defaultdict(list)
        self.requests: list[str] = []
        self._closing = threading.Event()

    def __enter__(self) -> "OpenMLServer":
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer._answer(self)

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.base = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.url = f"{self.base}/api/v1/xml"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        self.requests.append(path)
        kind, status, text = self._content(path)
        fault = self.faults[kind].pop(0) if self.faults[kind] else None
        if fault == "hang":
            self._closing.wait(30)
        if fault == "500":
            status, text = 500, "Internal Server Error"
        body = gzip.compress(text.encode())
        handler.send_response(status)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if fault == "truncated" else body)

    def _content(self, path: str) -> tuple[str, int, str]:
        api = "/api/v1/xml/data"
        if path == f"{api}/{self.data_id}":
            return "description", 200, self._description()
        if path == f"{api}/features/{self.data_id}":
            return "features", 200, self._features()
        if path == f"{api}/qualities/{self.data_id}":
            return "qualities", 200, self._qualities()
        if path.startswith(f"{api}/list"):
            return "list", 200, self._list()
        if path == "/file.arff":
            return "file", 200, self.arff
        return "unknown", 412, _error(111, "Unknown dataset")

    def _description(self) -> str:
        md5 = self.md5 or hashlib.md5(self.arff.encode()).hexdigest()
        return (
            f"<oml:data_set_description {_NAMESPACE}><oml:id>{self.data_id}</oml:id>"
            f"<oml:name>{self.name}</oml:name><oml:version>1</oml:version>"
            "<oml:description>a table</oml:description><oml:format>ARFF</oml:format>"
            f"<oml:url>{self.base}/file.arff</oml:url><oml:file_id>1</oml:file_id>"
            f"<oml:parquet_url>{self.base}/file.pq</oml:parquet_url>"
            f"<oml:status>active</oml:status><oml:md5_checksum>{md5}</oml:md5_checksum>"
            "</oml:data_set_description>"
        )

    def _features(self) -> str:
        names = [line.split()[1] for line in self.arff.splitlines() if "@attribute" in line]
        features = "".join(
            f"<oml:feature><oml:index>{i}</oml:index><oml:name>{name}</oml:name>"
            "<oml:data_type>numeric</oml:data_type></oml:feature>"
            for i, name in enumerate(names)
        )
        return f"<oml:data_features {_NAMESPACE}>{features}</oml:data_features>"

    def _qualities(self) -> str:
        return (
            f"<oml:data_qualities {_NAMESPACE}><oml:quality><oml:name>NumberOfInstances</oml:name>"
            "<oml:value>625.0</oml:value></oml:quality></oml:data_qualities>"
        )

    def _list(self) -> str:
        return (
            f"<oml:data {_NAMESPACE}><oml:dataset><oml:did>{self.data_id}</oml:did>"
            f"<oml:name>{self.name}</oml:name><oml:version>1</oml:version>"
            "<oml:status>active</oml:status></oml:dataset></oml:data>"
        )


def _error(code: int, message: str) -> str:
    return (
        f"<oml:error {_NAMESPACE}><oml:code>{code}</oml:code>"
        f"<oml:message>{message}</oml:message></oml:error>"
    )
