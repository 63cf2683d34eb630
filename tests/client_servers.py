"""Servers for the client's tests, in TLS and in the clear, that answer whatever a test says."""

import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc

from afd_serve.client.channels import Reply

Answer = Callable[[str, bytes], Reply]
Tls = tuple[Path, Path]
"""A server's certificate and its key."""


@contextmanager
def http_servers() -> Iterator[Callable[..., str]]:
    """What starts servers over HTTP and tells their URLs, and into a list how each call was authorized."""
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Answer, tls: Tls | None = None, authorized: list[str | None] | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                if authorized is not None:
                    authorized.append(self.headers.get("Authorization"))
                reply = answer(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(reply.body)))
                if reply.message:
                    self.send_header("Location", reply.message)
                self.end_headers()
                self.wfile.write(reply.body)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"

    try:
        yield serve
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@contextmanager
def grpc_servers() -> Iterator[Callable[..., str]]:
    """What starts servers over gRPC, as `http_servers`."""
    servers: list[Any] = []

    def serve(answer: Answer, tls: Tls | None = None, authorized: list[str | None] | None = None) -> str:
        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc,name-defined]
            def service(self, details: Any) -> Any:
                if authorized is not None:
                    authorized.append(dict(details.invocation_metadata).get("authorization"))

                def respond(body: bytes, context: Any) -> bytes:
                    reply = answer(details.method, body)
                    if reply.status != 200:
                        context.abort(getattr(grpc.StatusCode, reply.message), reply.body.decode())
                    return reply.body

                return grpc.unary_unary_rpc_method_handler(respond)

        server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Handler()])
        if tls:
            proof = grpc.ssl_server_credentials([(tls[1].read_bytes(), tls[0].read_bytes())])
            port = server.add_secure_port("127.0.0.1:0", proof)
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"grpc{'s' if tls else ''}://127.0.0.1:{port}"

    try:
        yield serve
    finally:
        for server in servers:
            server.stop(0).wait()
