"""Prompt expanders that others run: endpoints of the OpenAI kind, and local language models."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.lit.expander import create_expander
from lightning_sora.models.expander import EXPANDERS


class _Endpoint(BaseHTTPRequestHandler):
    """Plays an endpoint of the OpenAI kind."""

    answers: ClassVar[list[Any]] = []
    asked: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers.get("Authorization"), body))
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        status, answer = answer if isinstance(answer, tuple) else (200, answer)
        content = answer if isinstance(answer, bytes) else json.dumps(
            {"choices": [{"message": {"content": answer}}]}).encode()  # fmt: skip
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    _Endpoint.answers.clear()
    _Endpoint.asked.clear()
    with HTTPServer(("127.0.0.1", 0), _Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def remote(url: str, **options: Any) -> Any:
    made: Any = EXPANDERS.create("openai", url=url, model="tiny", **options)
    made.pause = 0.0
    return made


def test_an_endpoint_is_asked_as_the_protocol_says(endpoint: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    _Endpoint.answers[:] = [429, " A rich\n prompt. "]
    made = remote(endpoint, key_env="MY_KEY")
    assert made.expand(["a cube"], seed=4) == ["A rich prompt."]
    path, key, body = _Endpoint.asked[-1]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body["messages"][-1] == {"role": "user", "content": "a cube"}
    assert (body["model"], body["seed"], body["temperature"]) == ("tiny", 4, 0.0)
    assert "secret" not in made.fingerprint()
    assert made.fingerprint() != remote(endpoint, max_tokens=9).fingerprint()
    monkeypatch.setenv("MY_KEY", "secret\n")
    cut = {"choices": [{"message": {"content": "A whole one. And half"}, "finish_reason": "length"}]}
    _Endpoint.answers[:] = [json.dumps(cut).encode()]
    assert remote(f"{endpoint}/chat/completions", key_env="MY_KEY").expand(["a cube"]) == ["A whole one."]
    assert _Endpoint.asked[-1][:2] == ("/v1/chat/completions", "Bearer secret")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "words", "calls"),
    [
        ([500, 503, 500], "answers 500", 3),
        ([401], "answers 401", 1),
        ([b"no json"], "not that of a chat completion", 1),
        ([b'{"choices": []}'], "not that of a chat completion", 1),
        (["  "], "came out empty", 1),
        ([None], "not that of a chat completion", 1),
        ([["a", "list"]], "not that of a chat completion", 1),
        ([(400, b'{"error": {"message": "use max_completion_tokens"}}')], r"400 .*\(use max_completion_tokens\)", 1),
        ([404], "404 .* at http://.*/v1/chat/completions", 1),
    ],
)
def test_an_endpoint_that_fails_is_told_and_nothing_stands_in(
    endpoint: str, answers: list[Any], words: str, calls: int
) -> None:
    _Endpoint.answers[:] = answers
    with pytest.raises(SoraError, match=words):
        remote(endpoint, retries=2).expand(["a cube"])
    assert len(_Endpoint.asked) == calls


def test_expanders_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    for text, words in (
        (str(tmp_path / "x.ckpt"), "no checkpoint"),
        ("openai(url='localhost', model='x')", "http://"),
        ("nonsense", "unknown prompt expander"),
        (f"hf(name={str(tmp_path)!r})", "cannot load the language model"),
        (f"hf:{tmp_path}", "cannot load the language model"),
        (str(tmp_path), "no checkpoints/last.ckpt"),
        ("http://localhost:8000/v1", "the name of its model"),
    ):
        with pytest.raises(SoraError, match=words):
            create_expander(text)


def test_a_local_language_model_expands(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=["<eos>"], initial_alphabet=[chr(i) for i in range(32, 127)]
    )
    model.train_from_iterator(["a red cube moves"], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=16, n_layer=1, n_head=2,
                                     bos_token_id=0, eos_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = create_expander(f"hf(name={str(tmp_path)!r}, max_tokens=6)")
    first = made.expand(["a red cube"])
    assert first == made.expand(["a red cube"])
    assert first[0].strip()
    assert made.fingerprint() == create_expander(f"hf(name={str(tmp_path)!r}, max_tokens=6)").fingerprint()
    with pytest.raises(SoraError, match="has room for 512"):
        made.expand(["a cube " * 200])
    with pytest.raises(SoraError, match="max_tokens=0"):
        create_expander(f"hf(name={str(tmp_path)!r}, max_tokens=0)")
    # A template that knows no system's message, and writes the first mark itself, as Gemma's does.
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<eos>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path)
    made = create_expander(f"hf:{tmp_path}", "cpu")
    made.max_tokens = 4
    ids = made._asked("a red cube")[0].tolist()
    assert ids.count(0) == 1
    written = "".join(made.tokenizer.decode(ids[1:]).split())
    assert written.endswith("atmostfoursentences.aredcube")
    assert made.expand(["a red cube"])
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(SoraError, match="cannot load the language model"):
        create_expander(f"hf:{tmp_path}")
