"""Minimal local Hugging Face Hub test double (stdlib only).

    python fakehub.py --port 8899 --root DIR [--log]
    HF_ENDPOINT=http://127.0.0.1:8899 HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_test python ...

Covers: whoami, repos/create|delete|move|settings, info(+revision), tree, paths-info, refs, commits,
branch/tag, preupload, commit (ndjson), LFS batch + PUT object (basic transfer), resolve (HEAD/GET/Range), list.
Content addressed blobs on disk; every commit is a full path->blob manifest (like git, without git).
"""

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
LICENSES = {"apache-2.0", "mit", "cc-by-nc-4.0", "other"}  # of the real one's many
LFS_EXT = (".parquet", ".safetensors", ".bin", ".arrow", ".pt", ".gguf", ".zip", ".gz")


def git_sha1(b: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(b) + b).hexdigest()


class Hub:
    def __init__(self, root, user="tester", lfs_threshold=10 * 2**20):
        self.root, self.user, self.lfs_threshold = root, user, lfs_threshold
        self.lock = threading.RLock()
        self.orgs: set[str] = {"org"}
        self.tokens: set[str] = {"hf_test", "hf_secret", "hf_given"}
        self.fail = None  # (command, path) -> None, or a status to answer with
        self.repos: dict[tuple[str, str], dict] = {}
        self.log: list[tuple[str, str, int]] = []
        os.makedirs(f"{root}/blobs", exist_ok=True)

    # ---- blobs
    def put(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        p = f"{self.root}/blobs/{sha}"
        if not os.path.exists(p):
            with open(p, "wb") as f:
                f.write(data)
        return sha

    def get(self, sha):
        with open(f"{self.root}/blobs/{sha}", "rb") as f:
            return f.read()

    # ---- repos
    def create(self, rtype, rid, private=False, sdk=None):
        with self.lock:
            if (rtype, rid) in self.repos:
                return False
            r = {
                "id": rid,
                "type": rtype,
                "private": private,
                "sdk": sdk,
                "created": now(),
                "commits": {},
                "order": [],
                "branches": {},
                "tags": {},
                "gated": False,
            }
            self.repos[rtype, rid] = r
            sha = self.put(
                b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
            )
            data = self.get(sha)
            self.commit(
                r,
                "main",
                "initial commit",
                {".gitattributes": {"sha256": sha, "size": len(data), "oid": git_sha1(data), "lfs": False}},
            )
            return True

    def commit(self, r, branch, title, files, desc="", parent=None):
        cid = hashlib.sha1(json.dumps([r["id"], title, sorted(files), time.time_ns()]).encode()).hexdigest()
        r["commits"][cid] = {
            "id": cid,
            "title": title,
            "message": desc,
            "date": now(),
            "files": files,
            "parent": r["branches"].get(branch),
        }
        r["order"].append(cid)
        r["branches"][branch] = cid
        return cid

    def rev(self, r, rev):
        rev = unquote(rev or "main")
        rev = re.sub(r"^refs/(heads|tags)/", "", rev)
        if rev in r["branches"]:
            return r["branches"][rev]
        if rev in r["tags"]:
            return r["tags"][rev]
        if rev in r["commits"]:
            return rev
        for c in r["commits"]:
            if len(rev) >= 7 and c.startswith(rev):
                return c
        return None


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def front_matter(text):
    import yaml

    m = re.match(r"^---\s*\n(.*?)\n---", text, re.S)
    return (yaml.safe_load(m.group(1)) or {}) if m else {}


class H(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub = None

    def log_message(self, *a):
        pass

    # ---- helpers
    def send(self, code, body=b"", headers=None, ctype="application/json"):
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        self.hub.log.append((self.command, self.path, code))
        if self.server.verbose:
            print(self.command, self.path, code, file=sys.stderr, flush=True)
        self.send_response(code)
        h = {"Content-Type": ctype, "Content-Length": str(len(body)), "X-Request-Id": "fake"}
        h.update(headers or {})
        for k, v in h.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def err(self, code, ecode=None, msg=""):
        self.send(
            code,
            {"error": msg or ecode or "error"},
            {"X-Error-Code": ecode or "", "X-Error-Message": msg or ecode or ""},
        )

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            out = b""
            while True:
                n = int(self.rfile.readline().split(b";")[0], 16)
                out += self.rfile.read(n)
                self.rfile.readline()
                if n == 0:
                    return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def authed(self):
        return self.headers.get("Authorization") in {f"Bearer {token}" for token in self.hub.tokens}

    def entry(self, path, f, expand=False, commit=None):
        d = {"type": "file", "oid": f["oid"], "size": f["size"], "path": path}
        if f["lfs"]:
            d["lfs"] = {"oid": f["sha256"], "size": f["size"], "pointerSize": 134}
        if expand and commit:
            d["lastCommit"] = {"id": commit["id"], "title": commit["title"], "date": commit["date"]}
        return d

    def info(self, r, cid, q):
        c = r["commits"][cid]
        blobs = q.get("blobs", ["false"])[0].lower() in ("true", "1")
        sib = []
        for p, f in sorted(c["files"].items()):
            s = {"rfilename": p}
            if blobs:
                s.update(size=f["size"], blobId=f["oid"])
                if f["lfs"]:
                    s["lfs"] = {"sha256": f["sha256"], "size": f["size"], "pointerSize": 134}
            sib.append(s)
        card = {}
        if "README.md" in c["files"]:
            card = front_matter(self.hub.get(c["files"]["README.md"]["sha256"]).decode("utf8", "replace"))
        d = {
            "_id": hashlib.md5(r["id"].encode()).hexdigest()[:24],
            "id": r["id"],
            "author": r["id"].split("/")[0],
            "sha": cid,
            "lastModified": c["date"],
            "createdAt": r["created"],
            "private": r["private"],
            "gated": r["gated"],
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [str(t) for t in card.get("tags") or []],
            "siblings": sib,
            "cardData": card,
            "usedStorage": sum(f["size"] for f in c["files"].values()),
        }
        if r["type"] == "model":
            d["modelId"] = r["id"]
            for k in ("library_name", "pipeline_tag"):
                if card.get(k):
                    d[k] = card[k]
        if r["type"] == "space":
            d["sdk"] = r["sdk"]
        return d

    # ---- routing
    def do_HEAD(self):
        self.route()

    def do_GET(self):
        self.route()

    def do_POST(self):
        self.route()

    def do_PUT(self):
        self.route()

    def do_DELETE(self):
        self.route()

    def route(self):
        try:
            with self.hub.lock:
                self._route()
        except (BrokenPipeError, ConnectionResetError):
            pass
        except Exception as e:
            import traceback

            traceback.print_exc()
            self.err(500, "ServerError", repr(e))

    def _route(self):
        u = urlsplit(self.path)
        path = u.path
        q = parse_qs(u.query)
        hub = self.hub
        m = self.command
        raw = self.body() if m in ("POST", "PUT", "DELETE") else b""
        if hub.fail and (status := hub.fail(m, path)):
            return self.err(status, None, "told to fail")
        if self.headers.get("Authorization") and not self.authed():  # as the real one says it, of public things too
            return self.err(401, None, "Invalid credentials in Authorization header")

        def sent():
            return json.loads(raw or b"{}")

        if path == "/api/whoami-v2":
            if not self.authed():
                return self.err(401, None, "Invalid username or password.")
            return self.send(
                200,
                {
                    "type": "user",
                    "id": "u1",
                    "name": hub.user,
                    "fullname": hub.user,
                    "email": "t@example.org",
                    "canPay": False,
                    "isPro": False,
                    "orgs": [],
                    "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
                },
            )
        if path == "/api/validate-yaml":
            said = front_matter(sent()["content"]).get("license", "mit")
            if {*(said if isinstance(said, list) else [said])} <= LICENSES:
                return self.send(200, {"errors": [], "warnings": []})
            return self.send(400, {"errors": [{"message": f'"license" must be one of {sorted(LICENSES)}'}]})
        if path == "/api/repos/create" and m == "POST":
            if not self.authed():
                return self.err(401, None, "Unauthorized")
            j = sent()
            rid = f"{j.get('organization') or hub.user}/{j['name']}"
            t = j.get("type") or "model"
            if rid.split("/")[0] not in {hub.user, *hub.orgs}:
                return self.err(
                    403, None, f"You don't have the rights to create a {t} under the namespace {rid.split('/')[0]!r}."
                )
            ok = hub.create(t, rid, (j.get("visibility") == "private") or bool(j.get("private")), j.get("sdk"))
            prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[t]
            url = f"http://{self.headers['Host']}/{prefix}{rid}"
            return self.send(
                200 if ok else 409,
                {"url": url, "name": rid, "id": "x", **({} if ok else {"error": "You already created this repo"})},
            )
        if path == "/api/repos/delete" and m == "DELETE":
            j = sent()
            k = (j.get("type") or "model", f"{j.get('organization') or hub.user}/{j['name']}")
            return self.send(200, {}) if hub.repos.pop(k, None) else self.err(404, "RepoNotFound")
        if path == "/api/repos/move" and m == "POST":
            j = sent()
            k = (j.get("type") or "model", j["fromRepo"])
            if k not in hub.repos:
                return self.err(404, "RepoNotFound")
            r = hub.repos.pop(k)
            r["id"] = j["toRepo"]
            hub.repos[k[0], j["toRepo"]] = r
            return self.send(200, {})
        # LFS batch / objects
        mm = re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        if mm:
            objs = []
            for o in sent()["objects"]:
                d = {"oid": o["oid"], "size": o["size"]}
                if not os.path.exists(f"{hub.root}/blobs/{o['oid']}"):
                    d["actions"] = {"upload": {"href": f"http://{self.headers['Host']}/_lfs/{o['oid']}"}}
                objs.append(d)
            return self.send(200, {"transfer": "basic", "objects": objs}, ctype="application/vnd.git-lfs+json")
        mm = re.fullmatch(r"/_lfs/([0-9a-f]{64})", path)
        if mm and m == "PUT":
            sha = hub.put(raw)
            return self.send(200, b"") if sha == mm[1] else self.err(400, None, "sha mismatch")
        # list
        mm = re.fullmatch(r"/api/(models|datasets|spaces)", path)
        if mm:
            a, s = q.get("author", [None])[0], q.get("search", [None])[0]
            return self.send(
                200,
                [
                    self.info(r, r["branches"]["main"], q)
                    for (t, i), r in hub.repos.items()
                    if t == TYPES[mm[1]] and (not a or i.startswith(a + "/")) and (not s or s.lower() in i.lower())
                ],
            )
        # repo API
        mm = re.fullmatch(
            r"/api/(models|datasets|spaces)/([^/]+(?:/[^/]+)?)(?:/(revision|tree|paths-info|refs|commits|preupload|commit|branch|tag|settings|auth-check|xet-read-token|xet-write-token|resolve-cache|compare|super-squash)(?:/(.*))?)?",
            path,
        )
        if mm:
            t, rid, verb, rest = TYPES[mm[1]], mm[2], mm[3], mm[4]
            if (
                verb is None
                and (t, rid) not in hub.repos
                and rid.count("/") == 1
                and rid.split("/")[1] in ("revision",)
            ):
                return self.err(404, "RepoNotFound")
            r = hub.repos.get((t, rid))
            if not r or (r["private"] and not self.authed()):
                return self.err(401 if not self.authed() else 404, "RepoNotFound", "Repository Not Found")
            return self.repo_api(r, verb, rest, q, m, raw)
        # resolve
        mm = re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/(?:resolve|raw)/([^/]+)/(.+)", path)
        if mm and m in ("GET", "HEAD"):
            r = hub.repos.get(({"datasets/": "dataset", "spaces/": "space", None: "model"}[mm[1]], mm[2]))
            if not r or (r["private"] and not self.authed()):
                return self.err(401 if not self.authed() else 404, "RepoNotFound", "Repository Not Found")
            cid = hub.rev(r, mm[3])
            if not cid:
                return self.err(404, "RevisionNotFound")
            f = r["commits"][cid]["files"].get(unquote(mm[4]))
            if not f:
                return self.send(
                    404,
                    {"error": "Entry not found"},
                    {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": cid},
                )
            data = hub.get(f["sha256"])
            etag = f["sha256"] if f["lfs"] else f["oid"]
            h = {"ETag": f'"{etag}"', "X-Repo-Commit": cid, "Accept-Ranges": "bytes"}
            if f["lfs"]:
                h.update({"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(f["size"])})
            rg = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            code = 200
            if rg and (rg[1] or rg[2]):
                a = int(rg[1]) if rg[1] else max(0, len(data) - int(rg[2]))
                b = int(rg[2]) if rg[1] and rg[2] else len(data) - 1
                b = min(b, len(data) - 1)
                if a >= len(data):
                    return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                h["Content-Range"] = f"bytes {a}-{b}/{len(data)}"
                data = data[a : b + 1]
                code = 206
            return self.send(code, data, h, "application/octet-stream")
        return self.err(404, None, f"fakehub: no route {m} {path}")

    def repo_api(self, r, verb, rest, q, m, raw):
        hub = self.hub
        if verb is None or verb == "revision":
            cid = hub.rev(r, rest or "main")
            return self.send(200, self.info(r, cid, q)) if cid else self.err(404, "RevisionNotFound")
        if verb == "auth-check":
            return self.send(200, {})
        if verb == "settings":
            j = json.loads(raw)
            r["private"] = j.get("private", j.get("visibility") == "private" if "visibility" in j else r["private"])
            r["gated"] = j.get("gated", r["gated"])
            return self.send(200, j)
        if verb == "refs":
            return self.send(
                200,
                {
                    "branches": [
                        {"name": b, "ref": f"refs/heads/{b}", "targetCommit": c}
                        for b, c in r["branches"].items()
                        if not b.startswith("refs/")
                    ],
                    "pullRequests": [
                        {"name": b, "ref": b, "targetCommit": c}
                        for b, c in r["branches"].items()
                        if b.startswith("refs/pr/")
                    ],
                    "converts": [],
                    "tags": [{"name": b, "ref": f"refs/tags/{b}", "targetCommit": c} for b, c in r["tags"].items()],
                },
            )
        if verb == "branch":
            b = unquote(rest)
            if m == "DELETE":
                r["branches"].pop(b, None)
                return self.send(200, {})
            if b in r["branches"]:
                return self.err(409, None, "Reference already exists")
            sp = json.loads(raw or b"{}").get("startingPoint")
            r["branches"][b] = hub.rev(r, sp or "main")
            return self.send(201, {})
        if verb == "tag":
            if m == "DELETE":
                r["tags"].pop(unquote(rest), None)
                return self.send(200, {})
            tag = json.loads(raw)["tag"]
            if tag in r["tags"]:
                return self.err(409, None, "Tag already exists")
            r["tags"][tag] = hub.rev(r, rest)
            return self.send(201, {})
        is_foreign = r["id"].split("/")[0] not in {hub.user, *hub.orgs}
        if is_foreign and verb in ("preupload", "commit", "branch") and "create_pr" not in q:
            return self.err(403, None, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        if verb == "preupload":
            files = json.loads(raw)["files"]
            cid = hub.rev(r, rest)
            cur = r["commits"][cid]["files"] if cid else {}
            out = []
            for f in files:
                lfs = f["path"].lower().endswith(LFS_EXT) or f["size"] > hub.lfs_threshold
                d = {"path": f["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                if f["path"] in cur:
                    d["oid"] = cur[f["path"]]["sha256" if cur[f["path"]]["lfs"] else "oid"]
                out.append(d)
            return self.send(200, {"files": out})
        if verb == "commit":
            if not self.authed():
                return self.err(401, None, "Unauthorized")
            branch = unquote(rest)
            base = hub.rev(r, branch)
            if base is None:
                return self.err(404, "RevisionNotFound")
            files = dict(r["commits"][base]["files"])
            head = {}
            for line in raw.splitlines():
                if not line.strip():
                    continue
                o = json.loads(line)
                k, v = o["key"], o["value"]
                if k == "header":
                    head = v
                    if v.get("parentCommit") and v["parentCommit"] != base:
                        return self.err(412, None, "A commit has happened since. Please refresh and try again.")
                elif k == "file":
                    d = base64.b64decode(v["content"]) if v.get("encoding") == "base64" else v["content"].encode()
                    files[v["path"]] = {"sha256": hub.put(d), "size": len(d), "oid": git_sha1(d), "lfs": False}
                elif k == "lfsFile":
                    if not os.path.exists(f"{hub.root}/blobs/{v['oid']}"):
                        return self.err(400, None, f"LFS object {v['oid']} missing")
                    size = os.path.getsize(f"{hub.root}/blobs/{v['oid']}")
                    ptr = f"version https://git-lfs.github.com/spec/v1\noid sha256:{v['oid']}\nsize {size}\n".encode()
                    files[v["path"]] = {"sha256": v["oid"], "size": size, "oid": git_sha1(ptr), "lfs": True}
                elif k == "deletedFile":
                    files.pop(v["path"], None)
                elif k == "deletedFolder":
                    p = v["path"].rstrip("/") + "/"
                    files = {a: b for a, b in files.items() if not a.startswith(p)}
            pull = {}
            if q.get("create_pr"):
                number = 1 + sum(name.startswith("refs/pr/") for name in r["branches"])
                branch = f"refs/pr/{number}"
                r["branches"][branch] = base
            cid = hub.commit(r, branch, head.get("summary", ""), files, head.get("description", ""))
            prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[r["type"]]
            if q.get("create_pr"):
                pull = {"pullRequestUrl": f"http://{self.headers['Host']}/{prefix}{r['id']}/discussions/{number}"}
            return self.send(
                200,
                {
                    "success": True,
                    "commitOid": cid,
                    "commitUrl": f"http://{self.headers['Host']}/{prefix}{r['id']}/commit/{cid}",
                    "hookOutput": "",
                    **pull,
                },
            )
        if verb in ("tree", "paths-info"):
            rev, _, sub = (rest or "main").partition("/")
            cid = hub.rev(r, rev)
            if not cid:
                return self.err(404, "RevisionNotFound")
            c = r["commits"][cid]
            sub = unquote(sub).strip("/")
            dirs = {}
            for p in c["files"]:
                parts = p.split("/")
                for i in range(1, len(parts)):
                    dirs.setdefault("/".join(parts[:i]), hashlib.sha1("/".join(parts[:i]).encode()).hexdigest())

            def folder(d):
                return {
                    "type": "directory",
                    "oid": dirs[d],
                    "size": 0,
                    "path": d,
                    **({"lastCommit": {"id": c["id"], "title": c["title"], "date": c["date"]}} if expand else {}),
                }

            if verb == "paths-info":
                ct = self.headers.get("Content-Type", "")
                j = json.loads(raw) if "json" in ct else dict(parse_qs(raw.decode()).items())
                expand = str(
                    j.get("expand", [False]) if not isinstance(j.get("expand"), list) else j["expand"][0]
                ).lower() in ("true", "1")
                ps = j.get("paths", [])
                ps = [ps] if isinstance(ps, str) else ps
                return self.send(
                    200,
                    [
                        self.entry(p, c["files"][p], expand, c) if p in c["files"] else folder(p)
                        for p in ps
                        if p in c["files"] or p in dirs
                    ],
                )
            rec = q.get("recursive", ["false"])[0].lower() in ("true", "1")
            expand = q.get("expand", ["false"])[0].lower() in ("true", "1")
            if sub and sub not in dirs:
                return self.err(404, "EntryNotFound")
            pre = sub + "/" if sub else ""
            out = [folder(d) for d in sorted(dirs) if d.startswith(pre) and (rec or "/" not in d[len(pre) :])]
            out += [
                self.entry(p, f, expand, c)
                for p, f in sorted(c["files"].items())
                if p.startswith(pre) and (rec or "/" not in p[len(pre) :])
            ]
            return self.send(200, out)
        if verb == "commits":
            cid = hub.rev(r, rest)
            out = []
            while cid:
                c = r["commits"][cid]
                out.append(
                    {
                        "id": cid,
                        "title": c["title"],
                        "message": c["message"],
                        "date": c["date"],
                        "authors": [{"user": hub.user}],
                    }
                )
                cid = c["parent"]
            return self.send(200, out)
        return self.err(404, None, f"fakehub: no verb {verb}")


def start(root, port=0, verbose=False, user="tester"):
    hub = Hub(root, user)
    h = type("HH", (H,), {"hub": hub})
    s = ThreadingHTTPServer(("127.0.0.1", port), h)
    s.verbose = verbose
    s.daemon_threads = True
    threading.Thread(target=s.serve_forever, daemon=True).start()
    return s, hub, f"http://127.0.0.1:{s.server_address[1]}"


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("--port", type=int, default=8899)
    a.add_argument("--root", default="fakehub-data")
    a.add_argument("--log", action="store_true")
    a = a.parse_args()
    s, hub, url = start(a.root, a.port, a.log)
    print(url, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        s.shutdown()
