"""A proxyless gRPC application: two servers, and a client that finds them by xds:///.

Speaks lines with the test: prints `ports A B`; reads `call`; prints what the server answered; reads
`until B`; prints `reached B` when an answer comes from that server. GRPC_XDS_BOOTSTRAP names the
bootstrap, as in a pod.
"""

import concurrent.futures
import sys

import grpc

METHOD = "/lab.Echo/Say"
TARGET = "xds:///echo.sample.svc.cluster.local:7070"
LIMIT = 30


def say(text):
    print(text, flush=True)


def serve(name):
    def answer(request, _context):
        return name.encode() + b" heard " + request

    handler = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("lab.Echo", {"Say": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def main():
    servers = [serve("A"), serve("B")]
    say("ports " + " ".join(str(port) for _, port in servers))
    channel = grpc.insecure_channel(TARGET)
    call = channel.unary_unary(METHOD)
    for line in sys.stdin:
        words = line.split()
        if words == ["call"]:
            try:
                answer = call(b"hello", timeout=LIMIT, wait_for_ready=True)
                say("answer " + answer.decode())
            except grpc.RpcError as error:
                say(f"failed {error.code()} {error.details()}")
        elif words[:1] == ["until"]:
            while not call(b"", timeout=LIMIT, wait_for_ready=True).decode().startswith(words[1]):
                pass
            say("reached " + words[1])


main()
