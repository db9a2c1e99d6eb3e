"""
An in-memory stand-in for the Hugging Face Hub: an HTTP server with the REST endpoints that `huggingface_hub` and
`datasets` call to create a repository of a dataset or model, upload to it, list it, and download or stream from it.

Tests against it show that our calls, files and cards fit those two libraries. It differs from the real Hub: a dataset
and a model can't have the same name; any token is accepted, also for private repositories; there is no xet storage
(tests set `HF_HUB_DISABLE_XET=1`, so that files go by git LFS); there are no quotas, rate limits, pull requests,
branches besides `main`, or dataset viewer; and any card is accepted, whereas the Hub checks licence and tags.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from packaging.version import Version


# Earlier ones ask the real Hub to check a card, whatever the endpoint.
cards_are_checked_here = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2.2"), reason="needs huggingface_hub 2.2 to check cards offline"
)


class HubDouble:
    """
    Attributes:
        repos (`dict[str, list[tuple[str, dict[str, bytes]]]]`): For each repository the commits, oldest first: the
            hash and the files by path.
        private (`set[str]`): Repositories created as private, which can't be read without a token.
        altered (`dict[tuple[str, str], bytes]`): By repository and path, what is sent in place of a file, under the
            checksum of the true one.
        requests (`list[str]`): Method and path of every request.
        endpoint (`str`): The value to set `HF_ENDPOINT` to.
    """

    def __init__(self):
        self.repos = {}
        self.private = set()
        self.altered = {}
        self.requests = []
        self.lfs_objects = {}
        self.lfs_paths = set()
        self.endpoint = ""

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes] | None:
        commits = self.repos[repo_id]
        return commits[-1][1] if revision == "main" else dict(commits).get(revision)

    def commit(self, repo_id: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{repo_id} {len(self.repos[repo_id])}".encode()).hexdigest()
        self.repos[repo_id].append((sha, files))
        return sha


@contextmanager
def hub_double():
    """Yield a running [`HubDouble`]. Its content can be inspected during and after requests of other processes."""
    hub = HubDouble()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubDouble

    # 1. What is asked, by method and path. Groups named `repo` and `revision` are checked before a method is called.
    REPO = r"(?P<repo>[^/]+/[^/]+)"
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", rf"/api/(?:datasets|models)/{REPO}", "info"),
        ("GET", rf"/api/(?:datasets|models)/{REPO}/revision/(?P<revision>[^/]+)", "info"),
        ("GET", rf"/api/(?:datasets|models)/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "tree"),
        ("POST", rf"/api/(?:datasets|models)/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", rf"/api/(?:datasets|models)/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"(?:/datasets)?/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("POST", rf"/api/(?:datasets|models)/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", rf"(?:/datasets)?/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("HEAD", rf"(?:/datasets)?/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def dispatch(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(url.path)
        self.hub.requests.append(f"{self.command} {path}")
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                arguments = match.groupdict()
                repo, revision = arguments.get("repo"), arguments.get("revision")
                if repo and repo in self.hub.private and "Authorization" not in self.headers:
                    headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."}
                    return self.answer({"error": "Invalid username or password."}, 401, headers)
                if repo and repo not in self.hub.repos:
                    return self.answer_error("RepoNotFound", "Repository not found")
                if revision and self.hub.files(repo, revision) is None:
                    return self.answer_error("RevisionNotFound", "Revision not found")
                return getattr(self, name)(**arguments)
        self.answer_error("NotFound", f"{self.command} {path} is not part of the double")

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def log_message(self, *_):
        pass

    def answer(self, content: bytes | dict | list, status: int = 200, headers: dict[str, str] | None = None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_error(self, code: str, message: str):
        self.answer({"error": message}, 404, {"X-Error-Code": code, "X-Error-Message": message})

    # 2. Repositories.
    def create(self):
        request = json.loads(self.body)
        repo = f"{request['organization']}/{request['name']}"
        url = f"{self.hub.endpoint}/{'datasets/' if request.get('type') == 'dataset' else ''}{repo}"
        if repo in self.hub.repos:
            self.answer({"error": "You already created this repo", "url": url}, 409)
            return
        self.hub.repos[repo] = []
        self.hub.commit(repo, {".gitattributes": b"*.parquet filter=lfs\n*.safetensors filter=lfs\n"})
        if request.get("private") or request.get("visibility") == "private":
            self.hub.private.add(repo)
        self.answer({"url": url})

    def validate(self):
        self.answer({"errors": [], "warnings": []})

    def info(self, repo, revision="main"):
        commits = self.hub.repos[repo]
        sha = commits[-1][0] if revision == "main" else revision
        siblings = [{"rfilename": path} for path in self.hub.files(repo, revision)]
        private = repo in self.hub.private
        self.answer({"id": repo, "sha": sha, "private": private, "tags": [], "siblings": siblings})

    def tree(self, repo, revision, folder=None):
        files = self.hub.files(repo, revision)
        prefix = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for path in files:
            if path.startswith(prefix):
                parts = path.removeprefix(prefix).split("/")
                for depth in range(1, len(parts)):
                    parent = prefix + "/".join(parts[:depth])
                    if recursive or depth == 1:
                        entries[parent] = self.describe(files, parent)
                if recursive or len(parts) == 1:
                    entries[path] = self.describe(files, path)
        if folder and not entries:
            self.answer_error("EntryNotFound", f"{folder} does not exist")
        else:
            self.answer(list(entries.values()))

    def paths_info(self, repo, revision):
        files = self.hub.files(repo, revision)
        if self.headers["Content-Type"].startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        paths = [paths] if isinstance(paths, str) else paths
        found = [self.describe(files, path) for path in paths]
        self.answer([entry for entry in found if entry is not None])

    def describe(self, files: dict[str, bytes], path: str) -> dict | None:
        if path not in files:
            is_folder = any(name.startswith(f"{path}/") for name in files)
            return (
                {"type": "directory", "path": path, "oid": _git_hash(path.encode()), "size": 0} if is_folder else None
            )
        content = files[path]
        entry = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
        if path in self.hub.lfs_paths:
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return entry

    # 3. Upload: which files go by LFS, where to put them, and the commit that refers to them.
    def preupload(self, repo, revision):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".parquet", ".safetensors")) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer({"files": modes})

    def lfs_batch(self, repo):
        objects = []
        for requested in json.loads(self.body)["objects"]:
            answer = {"oid": requested["oid"], "size": requested["size"]}
            if requested["oid"] not in self.hub.lfs_objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{requested['oid']}"}}
            objects.append(answer)
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.answer({"error": "The content has another hash"}, 400)
            return
        self.hub.lfs_objects[oid] = self.body
        self.answer(b"")

    def commit(self, repo, revision):
        files = dict(self.hub.files(repo, revision))
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                parent = value.get("parentCommit")
                if parent is not None and parent != self.hub.repos[repo][-1][0]:
                    self.answer({"error": "A commit has happened since"}, 412)
                    return
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.hub.lfs_paths.discard(value["path"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.lfs_objects[value["oid"]]
                self.hub.lfs_paths.add(value["path"])
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                self.answer({"error": f"{key} is not part of the double"}, 400)
                return
        sha = self.hub.commit(repo, files)
        kind = "datasets/" if self.path.startswith("/api/datasets/") else ""
        self.answer({"commitUrl": f"{self.hub.endpoint}/{kind}{repo}/commit/{sha}", "commitOid": sha})

    # 4. Download, whole or in part.
    def resolve(self, repo, revision, path):
        commits = self.hub.repos[repo]
        headers = {"X-Repo-Commit": commits[-1][0] if revision == "main" else revision, "Accept-Ranges": "bytes"}
        content = self.hub.files(repo, revision).get(path)
        if content is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.answer(b"", 404, {**headers, **missing})
            return
        is_lfs = path in self.hub.lfs_paths
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest() if is_lfs else _git_hash(content)}"'
        headers["X-Linked-Size"] = str(len(content))
        content = self.hub.altered.get((repo, path), content)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self.answer(content, 200, headers)
            return
        first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(content[first : last + 1], 206, headers)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
