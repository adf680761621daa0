"""Text models and their tokenisers through ``transformers``: safetensors only, no code of the model's authors."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training_backend.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from training_backend.config.text import TextConfig

log = logging.getLogger(__name__)

VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
_PIECES = re.compile(r"\w+|[^\w\s]+")
"""Words and marks of the small text encoder."""
PAD, UNKNOWN, START, STOP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
MASKS = (MASK, "<mask>")
"""What hidden words are called in vocabularies of BERT and RoBERTa."""


@dataclass
class Tokeniser:
    """Token numbers of texts, remembered per text.

    Attributes:
        backend: a ``tokenizers.Tokenizer`` that adds the marks at both ends.
        longest: tokens after which a text is cut; its last mark is kept.
        pad: number that fills a row.
        cut: texts that were cut so far.
    """

    backend: Any
    longest: int
    pad: int
    cut: int = 0

    def __post_init__(self) -> None:
        self._known: dict[str, list[int]] = {}
        self._pieces: dict[str, tuple[list[int], list[int]]] = {}
        self.backend.no_padding()
        self.backend.no_truncation()

    def ids(self, text: str) -> list[int]:
        """Token numbers of a text with its marks, not more than `longest`."""
        if text not in self._known:
            whole = list(self.backend.encode(text).ids)
            self._known[text] = whole if len(whole) <= self.longest else self._cut(whole)
        return self._known[text]

    def _cut(self, whole: list[int]) -> list[int]:
        self.say_cut(len(whole))
        return [*whole[: self.longest - 1], whole[-1]]

    def say_cut(self, tokens: int) -> None:
        """Count a text of so many tokens that is cut, and say so the first time."""
        if not self.cut:
            log.warning(
                "A text has %d tokens, but %d are read; what comes after is left out, here and in longer texts.",
                tokens,
                self.longest,
            )
        self.cut += 1

    def pieces(self, text: str) -> tuple[list[int], list[int]]:
        """Token numbers of a text without marks at its ends, and for each the number of the word that it is part of."""
        if text not in self._pieces:
            found = self.backend.encode(text, add_special_tokens=False)
            words = [index if word is None else word for index, word in enumerate(found.word_ids)]
            self._pieces[text] = (list(found.ids), words)
        return self._pieces[text]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """First letter of each token of a text without marks, and the one behind it."""
        return [(int(start), int(end)) for start, end in self.backend.encode(text, add_special_tokens=False).offsets]

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """Marks before and after a text."""
        marks = list(self.backend.encode("").ids)
        return marks[: len(marks) // 2], marks[len(marks) // 2 :]

    @property
    def mask(self) -> int:
        """Number of the token that stands for a hidden word.

        Raises:
            WeightsError: the vocabulary has none.
        """
        found = next((number for name in MASKS if (number := self.backend.token_to_id(name)) is not None), None)
        if found is None:
            raise WeightsError(
                f"The tokeniser has no token for hidden words ({', '.join(MASKS)}), so none can be guessed.",
                "Choose a text model that was trained with masked words, such as a BERT or RoBERTa.",
            )
        return int(found)

    @property
    def size(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.backend.get_vocab_size())

    def batch(self, texts: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Token numbers [B, T] and mask [B, T], 1 where there is a token; T is that of the longest text."""
        rows = [self.ids(text) for text in texts]
        ids = torch.full((len(rows), max(map(len, rows), default=1)), self.pad)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return ids.to(device), mask.to(device)

    def to_json(self) -> str:
        """What `text_model` needs to make it again."""
        text: str = self.backend.to_str()
        return text


def text_model(config: TextConfig, reports: Sequence[str] = ()) -> tuple[nn.Module, Tokeniser]:
    """Text model and tokeniser of `config`.

    With `config.architecture` and `tokeniser` the model has fresh weights, for those of a checkpoint to be put in. With
    a `source` both are read from there. With neither a small model is made that knows the words of `reports`.

    Raises:
        ConfigError: ``transformers`` is not installed, or no reports to make a vocabulary of.
        WeightsError: the source has no vocabulary, no safetensors, or is not there.
    """
    transformers = _transformers()
    if config.architecture and config.tokeniser:
        settings = json.loads(config.architecture)
        model = transformers.AutoModel.from_config(
            transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        )
        return model, _tokeniser(config.tokeniser, config, model)
    if config.source:
        return _from_source(config)
    return _small(config, reports)


def architecture(model: nn.Module) -> str:
    """Settings of a text model as JSON, for `TextConfig.architecture`."""
    return _settings(model.config)


def _settings(config: Any) -> str:
    settings: dict[str, Any] = config.to_diff_dict()
    kept = {key: value for key, value in settings.items() if key not in ("transformers_version", "_name_or_path")}
    return json.dumps({**kept, "model_type": config.model_type})


def described(config: TextConfig) -> TextConfig:
    """`config` with the architecture and tokeniser of its source, whose weights are neither needed nor read.

    The source may be a run or model of ours too, whose card has both.

    Raises:
        ConfigError: ``transformers`` is not installed.
        WeightsError: the source has no settings or no vocabulary, or is not there.
    """
    if config.architecture and config.tokeniser:
        return config
    card = Path(config.source).expanduser() / "card.json"
    if card.is_file():
        return config.updated(_of_card(card))
    transformers = _transformers()
    where = _place(config, weights=False)
    with _named(config, "vocabulary and settings"):
        settings = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        tokeniser = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False, use_fast=True)
    return config.updated(
        {"architecture": _settings(settings), "tokeniser": tokeniser.backend_tokenizer.to_str()},
    )


def _of_card(card: Path) -> dict[str, str]:
    """Architecture and tokeniser of the text model that a model of ours holds."""
    try:
        told = json.loads(card.read_text(encoding="utf-8"))["config"]
        texts = [(told.get(part) or {}).get("text") or {} for part in ("task", "method")]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{card} does not describe a model.", "Choose another run.") from error
    for text in texts:
        if text.get("architecture") and text.get("tokeniser"):
            return {"architecture": text["architecture"], "tokeniser": text["tokeniser"]}
    raise WeightsError(f"{card.parent} holds no text model.", "Choose a run of mg3d.")


def _from_source(config: TextConfig) -> tuple[nn.Module, Tokeniser]:
    import transformers

    where = _place(config, weights=True)
    with _named(config, "tokeniser and safetensors weights"):
        tokeniser = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False, use_fast=True)
        model = transformers.AutoModel.from_pretrained(where, trust_remote_code=False, use_safetensors=True)
    return model, _tokeniser(tokeniser.backend_tokenizer.to_str(), config, model)


def _reason(error: Exception) -> str:
    """First line of what ``transformers`` says, without its full stops."""
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0].rstrip(". ")


@contextmanager
def _named(config: TextConfig, wanted: str) -> Iterator[None]:
    """Errors of ``transformers`` as sentences."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WeightsError(
            f"The text model {config.source} cannot be loaded: {_reason(error)}.",
            f"Choose a folder or hub name of a BERT or RoBERTa model with {wanted}.",
        ) from error


def _place(config: TextConfig, weights: bool) -> str:
    """Folder or hub name of the source, after a look at what the folder lacks."""
    source = Path(config.source).expanduser()
    if source.is_dir():
        _check_folder(source, weights)
        return str(source)
    if source.is_absolute() or config.source.startswith((".", "~")):
        raise WeightsError(f"There is no folder {config.source} with a text model.", "Choose its folder or hub name.")
    return config.source


def _check_folder(folder: Path, weights: bool) -> None:
    """Say what is missing in a folder before others guess."""
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} has no config.json, so it holds no text model.", "Choose the model's folder.")
    if not any((folder / name).is_file() for name in VOCABULARY):
        raise WeightsError(
            f"The text model in {folder} has no vocabulary ({', '.join(VOCABULARY)}).",
            "Copy the tokeniser's files into the folder.",
        )
    if weights and not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"The text model in {folder} has no safetensors weights; other formats may run foreign code.",
            "Get the model's .safetensors file, or convert it with transformers' save_pretrained.",
        )


def word_tokenizer(reports: Sequence[str], least_count: int = 1) -> Any:
    """A ``tokenizers.Tokenizer`` of the words that `reports` have at least so often, or a `ConfigError` without any."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    counts = Counter(word for report in reports for word in _PIECES.findall(report.lower()))
    known = sorted(word for word, count in counts.items() if count >= least_count)
    if not known:
        raise ConfigError(
            "There are no training reports to make a vocabulary of.", "Add reports to the dataset, or set text.source."
        )
    table = {word: number for number, word in enumerate((PAD, UNKNOWN, START, STOP, MASK, *known))}
    backend = Tokenizer(models.WordLevel(table, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(START, table[START]), (STOP, table[STOP])]
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A {STOP}", special_tokens=marks)
    return backend


def bert_tokenizer(source: str) -> Any:
    """The ``tokenizers.Tokenizer`` of a folder or hub name of a BERT model, of which nothing else is needed.

    Raises:
        ConfigError: ``transformers`` is not installed.
        WeightsError: there is no tokenizer.
    """
    from tokenizers import Tokenizer

    transformers = _transformers()
    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in VOCABULARY):
        raise WeightsError(
            f"The folder {source} has no vocabulary ({', '.join(VOCABULARY)}).", "Copy the tokenizer's files into it."
        )
    if not folder.is_dir() and (folder.is_absolute() or source.startswith((".", "~"))):
        raise WeightsError(f"There is no folder {source} with a tokenizer.", "Choose its folder or hub name.")
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    try:
        where = str(folder) if folder.is_dir() else source
        found = transformers.BertTokenizerFast.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WeightsError(
            f"The tokenizer {source} cannot be loaded: {_reason(error)}.",
            "Choose a folder or hub name of a BERT tokenizer.",
        ) from error
    return found.backend_tokenizer


def _small(config: TextConfig, reports: Sequence[str]) -> tuple[nn.Module, Tokeniser]:
    """A small BERT with fresh weights, and a tokeniser of the words of `reports`."""
    import transformers

    backend = word_tokenizer(reports, config.least_count)
    settings = transformers.BertConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=max(config.longest, 16),
        pad_token_id=backend.token_to_id(PAD),
    )
    model = transformers.AutoModel.from_config(settings)
    return model, _tokeniser(backend.to_str(), config, model)


def _tokeniser(text: str, config: TextConfig, model: nn.Module) -> Tokeniser:
    from tokenizers import Tokenizer

    settings: Any = model.config
    backend = Tokenizer.from_str(text)
    offset = int(settings.pad_token_id or 0) + 1 if "roberta" in settings.model_type else 0
    longest = min(config.longest, int(settings.max_position_embeddings) - offset)
    if backend.get_vocab_size() > settings.vocab_size:
        raise WeightsError(
            f"The tokeniser knows {backend.get_vocab_size()} tokens, but the text model only {settings.vocab_size}.",
            "Take both from the same model.",
        )
    pad = settings.pad_token_id if settings.pad_token_id is not None else backend.token_to_id(PAD)
    return Tokeniser(backend, longest, int(pad or 0))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "Reading reports needs the package transformers, which is not installed.",
            'Install it with: pip install "napari-med3dssl[text]".',
        ) from error
    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers
