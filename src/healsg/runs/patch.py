"""Removes secrets from a patch: files whose names suggest secrets, and lines in which one is detected."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from healsg.runs import redact

_KEY_FILES = (
    *(
        ".env",
        ".env.*",
        "*.env",
        ".envrc",
        ".netrc",
        "_netrc",
        ".pgpass",
        ".npmrc",
        ".pypirc",
        ".htpasswd",
        ".dockercfg",
    ),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.p8", "*.jks", "*.keystore", "*.ppk", "*.kdbx", "*.asc", "*.gpg", "*.age"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".git-credentials", ".s3cfg", ".boto", "kubeconfig"),
    *("credentials", "credentials.*", "service-account*.json", "service_account*.json", "*.tfvars", "*.tfstate"),
    *(f"*{word}*.{kind}" for word in ("secret", "credential", "password") for kind in ("json", "y*ml", "toml", "ini")),
    *(f"*{word}*.{kind}" for word in ("secret", "credential", "password") for kind in ("txt", "cfg", "conf", "env")),
)
"""Files that hold secrets, by their names in lower case; a patch leaves them out."""

_KEY_FOLDERS = {".ssh", ".aws", ".gnupg", ".docker", ".kube", ".azure"}

_BLOB = re.compile(r"^[+\- ]?\s*[A-Za-z0-9+/=]{40,}\s*$")
"""A line that is only base64, like the body of a key."""


def is_key_file(path: str) -> bool:
    """Whether a file with this path (separated by ``/``) probably contains secrets instead of code."""
    *folders, name = path.lower().split("/")
    return not _KEY_FOLDERS.isdisjoint(folders) or any(fnmatch.fnmatchcase(name, known) for known in _KEY_FILES)


def without_secrets(patch: str) -> str:
    """A patch in which each line that seems to contain a secret is replaced."""
    detectors = _detectors()
    name = ""
    in_key = False
    lines = []
    for line in patch.split("\n"):
        if line.startswith("diff --git "):
            in_key = False
        if line.startswith("+++ ") or line.startswith("--- "):
            name = line[6:] or name
        begins, ends = "PRIVATE KEY" in line and "-BEGIN" in line, "PRIVATE KEY" in line and "-END" in line
        in_key = (in_key or begins) and not ends
        hidden = in_key or ends or _BLOB.match(line) or redact.text(redact.code(line)) != line
        if hidden or any(detector.analyze_line(name, line, 0) for detector in detectors):
            line = f"{line[:1]}{redact.HIDDEN}"
        lines.append(line)
    return "\n".join(lines)


def _detectors() -> list[Any]:
    """All plugins of detect-secrets, including those by names and by entropy, except the one for IP addresses."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    plugins = get_mapping_from_secret_type_to_class().values()
    return [plugin() for plugin in plugins if plugin.__name__ != "IPPublicDetector"]
