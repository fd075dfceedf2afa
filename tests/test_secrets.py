"""Secrets stand in no file and on no screen, however they came in; and a run opens no port."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from fake_wandb import KEY, FakeWandb
from healsg.config.values import flat
from healsg.loggers.client import _trusted_folder
from healsg.runs import redact
from helpers import HANG, REPOSITORY
from test_logger_faults import slowed
from test_signals import ended, forked, record, wait_for

TINY = ["model=mlp", "model.width=8", "data.batch_size=512", "runner.epochs=2"]

ENVIRONMENT = {
    "WANDB_API_KEY": KEY,
    "MY_SERVICE_TOKEN": "env-5ErV1ce-value",
    "https_proxy": "http://me:pr0xy-Passw0rd@127.0.0.1:9",
    "no_proxy": "127.0.0.1",
}
PLANTED = {
    "variable": KEY,
    "group": ENVIRONMENT["MY_SERVICE_TOKEN"],
    "proxy": "pr0xy-Passw0rd",
    "key": "k3y-0f-an-0verride",
    "address": "aDDress-p4ssword",
    "query": "qu3ry-s1gned-value",
    "dict": "d1ct-inner-value",
    "list": "l1st-inner-value",
    "logger": "l0gger-s3cret-value",
    "shape": "ghp_" + "aB3dE6gH9" * 4,
    "remote": "g1t-rem0te-passw0rd",
    "literal": "p4tch-l1teral-value",
    "bare": "b4re-Ass1gned-value",
    "swept": "sw3pt-one-value",
    "camel": "c4mel-cased-value",
    "suffix": "suff1x-of-a-name",
    "header": "he4der-of-a-call",
    "hook": "Xh00kXh00kXh00kXh00kXh00",
    "live": "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc",
    "maps": "AI" + "zaSyD4aB3dE6gH9iJ2kL5mN8oP1qR4sT7uV0w",
    "aws": "AKIA" + "IOSFODNN7EXAMPLQ",
    "pem": "MIIEpAIBAAKCAQEA7Zq0x7Yqx7Yqx7Yqx7Yqx7Yqx7Yq",
    "number": "8675309867",
}
GIVEN = [
    f"+args.api_key={PLANTED['key']}",
    f"+args.url='https://me:{PLANTED['address']}@host/data'",
    f"+args.signed='https://host/data?token={PLANTED['query']}&part=1'",
    f"+args.some={{password: {PLANTED['dict']}, plain: shown-value}}",
    f"+args.secrets=[{PLANTED['list']}]",
    f"+args.note='Bearer {PLANTED['shape']}'",
    f"+args.apiToken={PLANTED['camel']}",
    f"+args.db_pass={PLANTED['suffix']}",
    f"+args.headers={{X-Api-Key: {PLANTED['header']}}}",
    f"+args.told='https://hooks.slack.com/services/T1234/B1234/{PLANTED['hook']}'",
    f"+args.shown='use {PLANTED['live']} and {PLANTED['maps']}, {PLANTED['aws']}'",
    f"+args.deep.userPassword={PLANTED['number']}",
]
LOGGER = [
    "+logger.mine._target_=parts.Secretive",
    f"+logger.mine.api_key={PLANTED['logger']}",
    f"wandb.group={ENVIRONMENT['MY_SERVICE_TOKEN']}",
]
PARTS = """
import logging, os
from healsg import BasicTask, Logger

class Secretive(Logger):
    def __init__(self, api_key: str) -> None:
        self.api_key = api_key

    def start(self, folder, record):
        raise OSError(f"the server refused {self.api_key}")

class Talkative(BasicTask):
    def build_model(self):
        logging.getLogger("healsg").warning("logging in with %s at %s", self.args.api_key, self.args.url)
        if self.args.get("fail"):
            told = self.args.api_key, self.args.some.password, os.environ["MY_SERVICE_TOKEN"]
            raise RuntimeError("refused: " + ", ".join(told))
        return super().build_model()
"""


def repository() -> None:
    """The user's code is under git: a password in the remote's address, and literals in what is not committed."""
    Path("parts.py").write_text(PARTS)
    for name in ("settings.py", "settings.yaml", ".env", "deploy.pem", "notes.txt"):
        Path(name).touch()
    Path(".gitignore").write_text("*\n!settings.*\n!.env\n!deploy.pem\n!notes.txt\n")
    own = ["-c", "user.name=a", "-c", "user.email=a@b"]
    address = f"https://me:{PLANTED['remote']}@host/code.git"
    for line in (["init", "-q"], ["remote", "add", "origin", address], ["add", "-A"], [*own, "commit", "-qm", "begin"]):
        subprocess.run(["git", *line], check=True)
    Path("settings.py").write_text(f'API_KEY = "{PLANTED["literal"]}"\n')
    Path(".env").write_text(f"ACCESS_KEY={PLANTED['bare']}\n")
    kind = "RSA PRIVATE KEY"
    for name in ("deploy.pem", "notes.txt"):
        Path(name).write_text(f"-----BEGIN {kind}-----\n{PLANTED['pem']}\n-----END {kind}-----\n")
    Path("settings.yaml").write_text(
        f"hook: https://hooks.slack.com/services/T1234/B1234/{PLANTED['hook']}\nbilling: {PLANTED['live']}\n"
        f"maps: {PLANTED['maps']}\naccessToken: {PLANTED['camel']}\ndb_pass: {PLANTED['suffix']}\n"
        f"headers: {{X-Api-Key: {PLANTED['header']}}}\nordinary: words\n"
    )


def check_hidden(folder: Path, *screens: Path) -> int:
    """No secret in any file of the folder or on a screen; the number of files looked at."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for what, secret in PLANTED.items():
        found = [str(path) for path in [*files, *screens] if secret.encode() in path.read_bytes()]
        found += [str(path) for path in folder.rglob("*") if secret in path.name]
        assert not found, f"{what}: {found}"
    return len(files)


def test_a_secret_that_is_set_during_the_run_is_hidden_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "it says plain-words-alone here"
    assert redact.text(line) == line
    monkeypatch.setenv("SOME_PASSWORD", "plain-words-alone")
    assert redact.text(line) == f"it says {redact.HIDDEN} here"


def test_secrets_are_in_no_file_and_on_no_screen() -> None:
    repository()
    line = [*TINY, *GIVEN, "task._target_=parts.Talkative", "record_patch=true", "name=run"]
    with FakeWandb() as server:

        def prepare() -> None:
            server.forget()
            os.environ.update(ENVIRONMENT, HOME=str(Path.cwd()), WANDB_CONFIG_DIR=str(Path.cwd()))
            os.environ.update(WANDB_BASE_URL=server.url)

        full = [*line, *LOGGER, "logger=tensorboard", "use_wandb=true"]
        assert ended(forked(["train", *full], prepare)) == 0, Path("output").read_text()
        assert ended(forked(["train", *full], prepare)) == 1  # it is finished
        assert ended(forked(["resume", "run"], prepare)) == 2  # what is hidden must be given again
        assert ended(forked(["train", *line, "wandb.api_key=" + PLANTED["key"]], prepare)) == 2
        assert ended(forked(["train", *line, "modle=" + PLANTED["shape"]], prepare)) == 2
        assert ended(forked(["train", *line, "data.batch_size='https://me:aDDress-p4ssword@host'"], prepare)) == 2
        assert ended(forked(["train", "init_from=https://me:aDDress-p4ssword@host/a", *line[:-1]], prepare)) == 2
        assert ended(forked(["train", *line, "--cfg", "job"], prepare)) == 0
        offline = [*line[:-1], "name=offline", "use_wandb=true", "wandb.mode=offline", *LOGGER]
        assert ended(forked(["train", *offline], prepare)) == 0
        sent = "".join(server.bodies)
    assert not [secret for secret in PLANTED.values() if secret in sent]
    assert check_hidden(Path("runs"), Path("output")) > 30
    told = Path("output").read_text()
    assert "the server refused ***" in told
    assert "logging in with *** at https://***@host/data" in told
    assert "shown-value" in Path("runs/run/config.yaml").read_text(), "what is no secret stays"
    patch = record(Path("runs/run"))["patch"]
    assert patch.startswith("# left out, since files of such names hold secrets: .env, deploy.pem\n")
    assert "+ordinary: words" in patch
    assert patch.count("\n+***") == 10


def test_secrets_of_a_failure_and_of_a_sweep() -> None:
    repository()
    line = [*TINY, *GIVEN, "task._target_=parts.Talkative", "runner=debug"]

    def prepare() -> None:
        os.environ.update(ENVIRONMENT)

    assert ended(forked(["train", *line, "+args.fail=true", "name=run"], prepare)) == 1
    assert record(Path("runs/run"))["reason"] == "RuntimeError: refused: ***, ***, ***"
    assert ended(forked(["train", *line, "+args.fail=true", "name=run", "debug=true"], prepare)) == 1
    swept = f"+args.deploy_token={PLANTED['swept']},other-s3cret-value"
    assert ended(forked(["train", *line, "name=sweep", "-m", swept, "+args.fail=false,true"], prepare)) == 1
    assert len(list(Path("runs/sweep").glob("*/run.json"))) == 4
    assert check_hidden(Path("runs"), Path("output")) > 30
    told = Path("output").read_text()
    assert told.count("RuntimeError: refused: ***, ***, ***") >= 4
    assert "other-s3cret-value" not in told


def test_what_is_learnt_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_met", set())
    assert redact.config({"api_key": "learnt-value", "n": 3}) == {"api_key": "***", "n": 3}
    assert redact.text("refused learnt-value") == "refused ***"
    assert (
        redact.text("a word like tokenizer, max_tokens=3 or author=me")
        == "a word like tokenizer, max_tokens=3 or author=me"
    )
    assert redact.text("Authorization: Bearer abcd.efgh-ijkl") == "Authorization: Bearer ***"
    assert redact.code("token = tokenizer(text)\n") == "token = tokenizer(text)\n"
    error = RuntimeError("at learnt-value")
    assert "learnt-value" not in redact.trace(error)
    monkeypatch.setattr("sys.argv", ["train.py", "+args.password='of the line'", "seed=3"])
    assert redact.text("no of the line") == "no ***"


def test_of_a_secret_that_begins_with_another_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_met", {"learnt-value", "learnt-value-of-the-longer", "value-of-the-longer"})
    assert redact.text("refused learnt-value-of-the-longer, learnt-value") == "refused ***, ***"


# --- names and forms: what is hidden, and what is not -----------------------------------------------------------------

VALUE = "v4lue-0f-it-all"

NAMES = [
    *(
        "api_key",
        "apiKey",
        "APIKey",
        "API_KEY",
        "apikey",
        "X-Api-Key",
        "x-api-key",
        "api_keys",
        "my.api_key",
        "wandb_key",
    ),
    *(
        "access_key",
        "accessKeyId",
        "aws_secret_access_key",
        "AWS_ACCESS_KEY_ID",
        "private_key",
        "privateKey",
        "secret_key",
    ),
    *("account_key", "AccountKey", "signing_key", "encryption_key", "sshKey", "client_key", "app_key", "service_key"),
    *(
        "token",
        "apiToken",
        "accessToken",
        "access_token",
        "ACCESS_TOKEN",
        "hf_token",
        "HF_TOKEN",
        "authToken",
        "botToken",
    ),
    *("refresh_tokens", "accessTokens", "id_token", "apitoken", "accesstoken", "MY_SERVICE_TOKEN", "github-token"),
    *("password", "passwd", "passphrase", "passcode", "pwd", "db_password", "dbPassword", "dbpassword", "passwords"),
    *("db_pass", "DB_PASS", "userPass", "dbpass", "pass", "smtp.pass", "MYSQL_PWD", "pgPassword"),
    *(
        "secret",
        "secrets",
        "clientSecret",
        "client_secret",
        "CLIENT_SECRET",
        "webhookSecret",
        "credentials",
        "credential",
    ),
    *("auth", "Authorization", "oauth", "basic_auth", "proxyAuthorization", "bearer", "jwt", "sessionJwt"),
    *("webhook", "webhookUrl", "slack_webhook_url", "hook_url", "connection_string", "connectionString"),
]
"""Names whose values are hidden. The list is a literal one, so that what is taken out of the patterns fails here."""

FORMS = {
    "slack hook": ("https://hooks.slack.com/services/", "T0AB12345/B0AB12345/aB3dE6gH9iJ2kL5mN8oP1qR4"),
    "discord hook": ("https://discord.com/api/webhooks/", "123456789012345678/aB3dE6gH9iJ2kL5mN8oP1qR4sT7uV0w"),
    "office hook": ("https://some.webhook.office.com/", "webhookb2/11111111-2222/IncomingWebhook/aB3dE6gH9iJ2"),
    "other hook": ("https://host.example/webhooks/", "aB3dE6gH9iJ2kL5mN8"),
    "stripe": ("", "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc"),
    "stripe, restricted": ("", "rk_" + "live_4eC39HqLyjWDarjtT1zdp7dc"),
    "google": ("", "AI" + "zaSyD4aB3dE6gH9iJ2kL5mN8oP1qR4sT7uV0w"),
    "google, client": ("", "GOCSPX-" + "aB3dE6gH9iJ2kL5mN8oP1qR4sT7u"),
    "github": ("", "ghp_" + "aB3dE6gH9" * 4),
    "github, new": ("", "github_pat_" + "11AAAAAAA0aB3dE6gH9iJ2_kL5mN8oP1qR4sT7uV0w"),
    "github, of an app": ("", "ghs_" + "aB3dE6gH9" * 4),
    "github, refreshed": ("", "ghr_" + "aB3dE6gH9" * 4),
    "github, of a user": ("", "ghu_" + "aB3dE6gH9" * 4),
    "github, by oauth": ("", "gho_" + "aB3dE6gH9" * 4),
    "stripe, public": ("", "pk_" + "test_4eC39HqLyjWDarjtT1zdp7dc"),
    "slack, of an app": ("", "xapp" + "-1-A0123456789-aB3dE6gH9iJ2"),
    "google, for a while": ("", "ya29" + ".aB3dE6gH9iJ2kL5mN8oP1qR4sT7u"),
    "digitalocean": ("", "dop_v1_" + "0123456789abcdef" * 4),
    "shopify": ("", "shpat_" + "0123456789abcdef" * 2),
    "age": ("", "AGE-SECRET-KEY-" + "1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2),
    "discord hook, old": ("https://discordapp.com/api/webhooks/", "123456789012345678/aB3dE6gH9iJ2kL5mN8oP1qR4"),
    "one hook": ("https://host.example/webhook/", "aB3dE6gH9iJ2kL5mN8"),
    "signed, by a key": ("https://host/a?key=", "aB3dE6gH9iJ2kL5mN8oP"),
    "signed, in full": ("https://host/a?b=1&signature=", "aB3dE6gH9iJ2kL5mN8oP"),
    "signed, at amazon": ("https://host/a?X-Amz-Signature=", "0123456789abcdef0123"),
    "credential, at amazon": ("https://host/a?X-Amz-Credential=", "AB3DE6GH9IJ2%2F2026"),
    "signed, at google": ("https://host/a?X-Goog-Signature=", "0123456789abcdef0123"),
    "gitlab": ("", "glpat-" + "aB3dE6gH9iJ2kL5mN8oP"),
    "hugging face": ("", "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"),
    "openai": ("", "sk-" + "proj-aB3dE6gH9iJ2kL5mN8oP1qR4sT7uV0w"),
    "slack": ("", "xox" + "b-123456789012-123456789012-aB3dE6gH9iJ2kL5mN8oP1qR4"),
    "aws": ("", "AKIA" + "IOSFODNN7EXAMPLQ"),
    "aws, for a while": ("", "ASIA" + "IOSFODNN7EXAMPLQ"),
    "jwt": ("", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"),
    "sendgrid": ("", "SG" + ".aB3dE6gH9iJ2kL5mN8oP1q.R4sT7uV0waB3dE6gH9iJ2kL5mN8oP1qR4sT7uV0waB3"),
    "npm": ("", "npm_" + "aB3dE6gH9iJ2kL5mN8oP1qR4sT7uV0waB3dE"),
    "pypi": ("", "pypi-" + "AgEIcHlwaS5vcmcCJDExMTExMTExLTIyMjItMzMzMy00NDQ0LTU1NTU1NTU1NTU1NQ"),
    "telegram": ("", "123456789:AA" + "aB3dE6gH9iJ2kL5mN8oP1qR4sT7uV0w"),
    "twilio, by the detector": ("", "SK" + "0123456789abcdef0123456789abcdef"),
    "mailchimp, by the detector": ("", "0123456789abcdef0123456789abcdef-us12"),
    "basic": ("https://me:", "p4ss-w0rd-of-it"),
    "signed address": ("https://host/a?part=1&sig=", "aB3dE6gH9iJ2kL5mN8oP"),
    "bearer": ("Bearer ", "aB3dE6gH9iJ2"),
    "pem": ("", "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7Zq0\n-----END RSA PRIVATE KEY-----"),
}
"""By form what stands before the secret, which may be shown, and the secret."""


def words(text: str) -> list[str]:
    return text.split()


# What the patterns are made of, word by word, as a literal copy: what is taken out of them fails here.

ENDINGS = words(
    """
    password passwords passwd passphrase passcode secret secrets credential credentials apikey apikeys
    accesskey secretkey privatekey authkey apitoken accesstoken authtoken authorization oauth webhook
    webhooks connectionstring dbpass userpass
    """
)

WHOLE = words(
    """
    auth pwd jwt bearer
    """
)

KEYS = words(
    """
    api access private secret auth account signing encryption shared master service storage subscription ssh
    deploy license client session consumer app application wandb openai anthropic azure aws gcp google hf
    github gitlab comet neptune
    """
)

PLAIN_TOKENS = words(
    """
    cls class mask pad padding eos bos unk sep special register dist distill start end stop first last next
    prev image patch text prompt query per max min num n new each extra global summary latent audio video
    time
    """
)

SECRET_TOKENS = words(
    """
    access api auth bearer refresh session secret id deploy hf bot
    """
)

PLAIN_PASSES = words(
    """
    forward backward first second third last next one two single double multi per each every extra all low
    high band n num max min train val test
    """
)

PASSWORDS = words(
    """
    pass password passwords passwd passphrase passcode pwd
    """
)

PLAIN_NAMES = [
    *("tokens", "max_tokens", "max_token", "num_tokens", "tokenizer", "method.tokenizer", "token_dim", "tokenLength"),
    *("cls_token", "pad_token", "mask_token", "eosToken", "class_token", "compass", "bypass", "passes", "data.passes"),
    *("passed", "forward_pass", "lowPass", "band_pass", "author", "authors", "key", "keys", "sort_key", "imageKey"),
    *("monkey", "lr", "seed", "monitor", "hook", "hooks", "name", "path", "url", "secretary", "accessible", "keyboard"),
]

PLAIN_TEXTS = [
    *("tokens=5", "bypass=1", "compass=north", "method.tokenizer=bpe", "data.passes=3", "method.optimizer.lr=0.001"),
    *("args.token: no such key; did you mean args.tokens?", "a word like tokenizer, max_tokens=3 or author=me"),
    *(
        "https://host/path?part=12345678",
        "epoch 1/2  train/loss 2.3445  val/acc 0.1000",
        "runs/2026-01-02_03-04-05_a_b1c2",
    ),
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    *("name=resnet50-lr0.1-wd5e4-2026", "data.root=/mnt/data2/sets/imagenet2012"),
]


@pytest.fixture
def unaware(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret is known by its value."""
    monkeypatch.setattr(redact, "_met", set())


def test_values_are_hidden_by_their_names(unaware: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for name in NAMES:
        monkeypatch.setattr(redact, "_met", set())
        ways = {
            "override": redact.override(f"+args.{name}={VALUE}"),
            "text": redact.text(f"refused: {name}={VALUE}"),
            "dict": redact.text(f"{{a: 1, {name}: {VALUE}}}"),
            "json": redact.text(f'{{"{name}": "{VALUE}"}}'),
            "code": redact.code(f'{name} = "{VALUE}"\n'),
            "config": str(redact.config({"args": {name: VALUE}})),
        }
        monkeypatch.setattr(redact, "_met", set())  # in which the value is from now on
        ways["list"] = str(redact.config({"args": {name: [{"inner": VALUE}]}}))
        shown += [f"{name}, as {way}" for way, told in ways.items() if VALUE in told]
    assert not shown


def test_every_word_that_makes_a_name_a_secret_s_does_so() -> None:
    secret = [made for word in ENDINGS for made in (word, f"my{word}", f"the_{word}_of_it", word.upper())]
    secret += [made for word in WHOLE for made in (word, f"the_{word}_of_it", word.capitalize())]
    secret += [made for word in KEYS for made in (f"{word}_key", f"{word}Keys", f"{word}-key-id")]
    secret += [f"{word}_tokens" for word in SECRET_TOKENS] + ["token", "own_token", "pass", "own_pass"]
    secret += ["connection_string", "hook_url", "private_pem"]
    assert [name for name in secret if not redact.is_secret_name(name)] == []
    plain = [f"{word}_token" for word in PLAIN_TOKENS] + [f"{word}_pass" for word in PLAIN_PASSES]
    plain += ["tokens", *(f"{word}_tokens" for word in PLAIN_TOKENS if word not in SECRET_TOKENS)]
    assert [name for name in plain if redact.is_secret_name(name)] == []
    assert [word for word in PASSWORDS if redact.config({word: 12}) != {word: "***"}] == []


def test_secrets_are_hidden_by_their_forms(unaware: None) -> None:
    shown = []
    for form, (before, secret) in FORMS.items():
        whole = f"{before}{secret}{'@host/path' if form == 'basic' else ''}"
        ways = {"config": redact.config({"note": whole})["note"], "text": redact.text(f"a {whole} b")}
        ways |= {"override": redact.override(f"+args.note={whole}"), "code": redact.code(f"note = '{whole}'\n")}
        shown += [f"{form}, as {way}" for way, told in ways.items() if secret in told or "***" not in told]
    assert not shown


def test_what_is_no_secret_is_not_hidden(unaware: None) -> None:
    assert [name for name in PLAIN_NAMES if redact.is_secret_name(name)] == []
    assert dict.fromkeys(PLAIN_NAMES, VALUE) == redact.config(dict.fromkeys(PLAIN_NAMES, VALUE))
    for line in PLAIN_TEXTS:
        assert redact.text(line) == redact.override(line) == redact.code(line) == line
    numbers = {"token": 5, "auth": True, "secret": None, "api_key": 0.5}
    assert redact.config(numbers) == numbers
    assert redact.config({"password": 12, "token": 1234567}) == {"password": "***", "token": "***"}


def test_none_of_our_own_settings_is_called_like_a_secret() -> None:
    found = []
    for path in (REPOSITORY / "conf").rglob("*.yaml"):
        keys = [key for key, _ in flat(yaml.safe_load(path.read_text()) or {})]
        found += [f"{path.name}: {key}" for key in keys if redact.is_secret_name(key)]
    assert not found


def test_the_client_of_wandb_takes_no_settings_from_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its file ``wandb/settings`` may name the server to which the key is sent."""
    run = tmp_path / "received"
    (run / "wandb").mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "run.json").touch()
    assert _trusted_folder() == tmp_path
    for inside in (run, run / "wandb"):
        monkeypatch.chdir(inside)
        assert _trusted_folder() == Path("/")


# --- ports -----------------------------------------------------------------------------------------------------------

IMAGES = """
import torch
from healsg import DataInfo, DatasetSource
from healsg.datasets.classification import Classification

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, index): return {"input": torch.rand(1, 8, 8), "target": torch.tensor(index % 10)}

class Read(Classification):
    @property
    def info(self): return DataInfo(input_shape=(1, 8, 8), num_classes=10)
    def read(self, part): return None if part == "val" else DatasetSource(Slow())
"""


def descendants(root: int) -> dict[int, str]:
    """The processes that came from one, itself too, with their programs."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
            parents[int(path.parent.name)] = int(rest.split()[1])
            names[int(path.parent.name)] = head.partition("(")[2]
        except OSError:
            continue
    found = {root}
    for _ in range(10):
        found |= {child for child, parent in parents.items() if parent in found}
    return {process: names.get(process, "") for process in found}


def listening(processes: dict[int, str]) -> list[tuple[str, str]]:
    """The sockets that wait for connections: ``tcp`` or their path, and the program that has them open."""
    waiting = {}
    for kind in ("tcp", "tcp6"):
        rows = [row.split() for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
        waiting |= {row[9]: kind for row in rows if row[3] == "0A"}
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
    waiting |= {row[6]: row[-1] for row in rows if int(row[3], 16) & 0x10000}
    found = []
    for process, name in processes.items():
        for path in Path(f"/proc/{process}/fd").glob("*"):
            try:
                target = str(path.readlink())
            except OSError:
                continue
            if target.startswith("socket:[") and (kind := waiting.get(target[8:-1])):
                found.append((kind, name))
    return found


def is_open_to_others(socket: Path) -> bool:
    """Whether another user could connect: who may write to the socket and enter its folder."""
    return bool(socket.stat().st_mode & 0o022 and socket.parent.stat().st_mode & 0o011)


def test_the_look_for_ports_can_find_one() -> None:
    with FakeWandb():
        assert ("tcp", Path("/proc/self/comm").read_text().strip()) in listening(descendants(os.getpid()))


@pytest.mark.parametrize("kind", ["default", "workers", "wandb"])
def test_a_run_listens_nowhere(kind: str) -> None:
    """At no port. The services of wandb's client, and torch's hand-over of tensors from workers, have sockets in the
    file system, which are closed to other users."""
    Path("reading.py").write_text(IMAGES)
    more = {"default": [], "workers": ["data=digits", "data._target_=reading.Read", "~data.shift", "~data.flip"]}
    more["workers"] += ["~data.augment", "~data.root", "data.workers=2", "data.batch_size=8", "data.val_fraction=0"]
    with FakeWandb() as server:

        def prepare() -> None:
            server.forget()
            os.environ.update(server.environment, HOME=str(Path.cwd()), WANDB_CONFIG_DIR=str(Path.cwd()))
            slowed(2 * HANG)

        child = forked(["train", *TINY, "name=run", *more.get(kind, ["use_wandb=true"])], prepare)
        try:
            wait_for(Path("epoch1").exists)
            fewest = {"default": 1, "workers": 3, "wandb": 3}[kind]
            wait_for(lambda: len(tree := descendants(child)) >= fewest and bool(listening(tree)) == (kind != "default"))
            tree = descendants(child)
            found = listening(tree)
            reachable = [socket for socket, _ in found if is_open_to_others(Path(socket))]
        finally:
            os.kill(child, signal.SIGKILL)
            ended(child)
    assert len(tree) >= fewest, tree
    assert not [socket for socket, _ in found if socket.startswith("tcp")], found
    assert not reachable, found
    assert bool(found) == (kind != "default"), found
    if kind == "workers":
        wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in tree))
