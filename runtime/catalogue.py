"""Everything that ``python -m runtime.fetch`` can fetch: repositories, files, sizes, licences and pinned commits.

A size with a sha256 is exact; one without is about right, and the hub has the last word before anything is downloaded. A
licence is what the model's card stated when its row was written: read the card before you build on the weights. A
revision is a commit that independent public projects pin for the same files; a row without one is resolved when it is
first fetched and then stays where it is (see ``pins.py``).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

APACHE, MIT = "Apache-2.0", "MIT"
BY_NC_SA = "CC BY-NC-SA 4.0"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository."""

    path: str
    bytes: int
    sha256: str = ""  # "": nobody has told us, and ``bytes`` is about right

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if not self.path or "" in parts or ".." in parts or "\\" in self.path:
            raise ValueError(f"path: want one inside a repository, got {self.path!r}")


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one repository at one commit, under one licence."""

    repo: str
    licence: str
    files: tuple[HubFile, ...]
    revision: str = ""  # a commit; "": the default branch's, when it is first fetched
    folder: str = ""  # below the folder that is converted; "": its root

    @property
    def restricted(self) -> bool:
        """Whether the licence forbids commercial use."""
        return "NC" in self.licence

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that can be fetched, and what runs with it."""

    name: str
    what: str
    parts: tuple[Part, ...]
    use: str  # the command that runs it
    becomes: str = ""  # the conversion, and the folder it makes; "": called as the row

    @property
    def folder(self) -> str:
        return self.becomes or self.name

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def exact(self) -> bool:
        """Whether ``bytes`` is known to a part in a hundred."""
        files = [file for part in self.parts for file in part.files]
        return 100 * sum(file.bytes for file in files if not file.sha256) < self.bytes

    @property
    def licences(self) -> tuple[str, ...]:
        """Of all parts, each once."""
        return tuple(dict.fromkeys(part.licence for part in self.parts))

    @property
    def restricted(self) -> bool:
        return any(part.restricted for part in self.parts)


_WAN = "Wan-AI/Wan2.1-T2V-1.3B"
_WAN_REVISION = "37ec512624d61f7aa208f7ea8140a131f93afc9a"
_WAN_DIT = (
    HubFile("config.json", 249, "ab37994c43740513f94b3ba6233a784035a67b43c8cde83c8f31aa90468c67ce"),
    HubFile(
        "diffusion_pytorch_model.safetensors",
        5_676_070_424,
        "96b6b242ca1c2f24e9d02cd6596066fab6d310e2d7538f33ae267cb18d957e8f",
    ),
)
_WAN_REST = (  # the autoencoder, the text encoder and its tokeniser: the same for every generator made from Wan
    HubFile(
        "Wan2.1_VAE.pth",
        507_609_880,
        "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
    ),
    HubFile(
        "models_t5_umt5-xxl-enc-bf16.pth",
        11_361_920_418,
        "7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
    ),
    HubFile(
        "google/umt5-xxl/tokenizer.json",
        16_837_417,
        "6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b",
    ),
)
_BESIDE = Part(_WAN, APACHE, _WAN_REST, _WAN_REVISION, folder="Wan2.1-T2V-1.3B")


def _sharded(folder: str, stem: str, sizes: tuple[int, ...]) -> tuple[HubFile, ...]:
    """The shards of one model, their index and its configuration."""
    names = [
        f"{folder}/{stem}-{n:05d}-of-{len(sizes):05d}.safetensors" for n in range(1, len(sizes) + 1)
    ]
    shards = tuple(map(HubFile, names, sizes))
    index = HubFile(f"{folder}/{stem}.safetensors.index.json", 50_000)
    return (HubFile(f"{folder}/config.json", 900), index, *shards)


_WAN_DIFFUSERS = Part(
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    APACHE,
    (
        *_sharded("transformer", "diffusion_pytorch_model", (5_000_000_000, 677_000_000)),
        *_sharded(
            "text_encoder",
            "model",
            (4_970_000_000, 4_900_000_000, 4_970_000_000, 5_000_000_000, 2_890_000_000),
        ),
        HubFile("vae/config.json", 700),
        HubFile("vae/diffusion_pytorch_model.safetensors", 508_000_000),
        HubFile("tokenizer/tokenizer.json", 16_800_000),
    ),
    "0fad780a534b6463e45facd96134c9f345acfa5b",
)
_LONGLIVE = Part(
    "Efficient-Large-Model/LongLive-1.3B",
    BY_NC_SA,  # of the card; the repository of its code says Apache-2.0
    (
        HubFile(
            "models/longlive_base.pt",
            5_676_334_208,
            "10a2aa8fcf89c77d9033f4c117405412a690e289625766619d293f0c5a208ee7",
        ),
        HubFile(
            "models/lora.pt",
            2_800_056_690,
            "c4e43b87d62d4b0614b496773639f1ab170a7ee486dc23407901e9d3a5ebc07a",
        ),
    ),
    "cda9138d93872ef109d9a74c270184eb3a5acc6e",
)
_SELF_FORCING = Part(
    "gdhe17/Self-Forcing",
    BY_NC_SA,
    (
        HubFile(
            "checkpoints/self_forcing_dmd.pt",
            5_676_252_553,
            "a0413986d9734e02c09504e1520f5697ba6df731bb2f0f35577485e9cc8f56a3",
        ),
    ),
    "2f8b779212da279d212c22a509b66ad6552f350e",
)
_CAUSVID = Part(
    "tianweiy/CausVid",
    BY_NC_SA,
    (
        HubFile(
            "autoregressive_checkpoint/model.pt",
            11_352_649_716,
            "8b75a848a525a6ab0b8cefa7f2a3997aefb581eb5824ad60bafb5337e81e521c",
        ),
    ),
    "b545eb2728fc9d1515023a270b847f7b24b3aa89",
)


def _qwen(size: str, revision: str) -> Part:
    """What the rewards need of their backbone: its sizes and its tokeniser, for they bring weights of their own."""
    name = f"Qwen2-VL-{size}-Instruct"
    files = (HubFile("config.json", 1_200), HubFile("tokenizer.json", 7_030_000))
    return Part(f"Qwen/{name}", APACHE, files, revision, folder=name)


_HPSV3 = Part(
    "MizzenAI/HPSv3",
    MIT,
    (
        HubFile(
            "HPSv3.safetensors",
            16_584_387_300,
            "a13d7ff5a07b7ffa0f7824e60d62e6ae144541ceefd5224b4c08fda7ab39f353",
        ),
    ),
    "4f81e3e09edd82fe3c5f636444c721b592a735ca",
)
_VIDEOALIGN = Part(
    "KlingTeam/VideoReward",
    APACHE,
    (
        HubFile("model_config.json", 4_000),
        HubFile(
            "checkpoint-11352/model.pth",
            5_031_072_529,
            "48375908e6112de9f0248402db156a23b480709a6960b091c598c6f4c88d21b9",
        ),
    ),
    "4f26600130683e6f1de9f5d463887f28e8ef995c",
)
_IMAGEREWARD = Part(
    "THUDM/ImageReward",
    APACHE,
    (HubFile("ImageReward.pt", 1_790_000_000), HubFile("med_config.json", 485)),
    "5736be03b2652728fb87788c9797b0570450ab72",
)
_BERT = Part(
    "google-bert/bert-base-uncased",
    APACHE,
    (HubFile("tokenizer.json", 466_000),),
    "86b5e0934494bd15c9632b12f734a8a67f723594",
)

_RUN = 'python -m runtime "a prompt" --generator'
_REWARD = 'python -m runtime "a prompt" --set reward'
CATALOGUE = {
    row.name: row
    for row in (
        Row(
            "wan-1.3b",
            "Wan2.1-T2V-1.3B as its authors publish it",
            (Part(_WAN, APACHE, _WAN_DIT + _WAN_REST, _WAN_REVISION),),
            f"{_RUN} wan-1.3b",
        ),
        Row(
            "wan-1.3b-diffusers",
            "the same model in the diffusers layout",
            (_WAN_DIFFUSERS,),
            f"{_RUN} wan-1.3b",
            becomes="wan-1.3b",
        ),
        Row(
            "longlive",
            "LongLive, the generator of the paper, with its LoRA",
            (_LONGLIVE, _BESIDE),
            f"{_RUN} longlive",
        ),
        Row(
            "self-forcing",
            "Self-Forcing, trained by distribution matching",
            (_SELF_FORCING, _BESIDE),
            f"{_RUN} self-forcing",
        ),
        Row("causvid", "CausVid, autoregressive", (_CAUSVID, _BESIDE), f"{_RUN} causvid"),
        Row(
            "hpsv3",
            "image reward of the paper",
            (_HPSV3, _qwen("7B", "eed13092ef92e448dd6875b2a00151bd3f7db0ac")),
            f"{_REWARD}.image=hpsv3",
        ),
        Row(
            "videoalign",
            "video reward of the paper",
            (_VIDEOALIGN, _qwen("2B", "895c3a49bc3fa70a340399125c650a463535e71c")),
            f"{_REWARD}.video=videoalign",
        ),
        Row(
            "imagereward",
            "image reward on BLIP",
            (_IMAGEREWARD, _BERT),
            f"{_REWARD}.image=imagereward",
        ),
    )
}


def find_row(name: str) -> Row:
    """The row called ``name``; ValueError lists the known ones, with a guess."""
    if name not in CATALOGUE:
        guess = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f"; did you mean {guess[0]}?" if guess else ""
        raise ValueError(
            f"{name!r}: nothing of this name can be fetched; known: {', '.join(CATALOGUE)}{hint}"
        )
    return CATALOGUE[name]
