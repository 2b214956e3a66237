"""Whom the RPC port lets in because the configuration runs something as them."""

from __future__ import annotations

import os
import pwd

import pytest

from trailboss.assembly import _worker_uids
from trailboss.config import LoadRequest, load

_USERS = [entry for entry in pwd.getpwall() if entry.pw_uid != os.geteuid()]


@pytest.mark.skipif(len(_USERS) < 3, reason="this machine has not enough users")
def test_every_configured_user_may_call(tmp_path: os.PathLike[str]) -> None:
    """server.user, on_init.user, and the user of a pool; not those that nobody named, nor one that does not exist."""
    first, second, third = (entry.pw_name for entry in _USERS[:3])
    path = os.path.join(tmp_path, ".rr.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"""
version: "3"
server: {{command: [php, worker.php], user: {first}, on_init: {{command: [php, -v], user: {second}}}}}
http: {{address: 127.0.0.1:8080, pool: {{process: {{user: {third}}}}}}}
jobs: {{pool: {{process: {{user: no-such-user}}}}}}
""")
    config = load(LoadRequest(path=path, environ={}))
    assert _worker_uids(config) == {entry.pw_uid for entry in _USERS[:3]}
