"""Settings: the only place that reads the environment."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_backend.domain.errors import BadRequest
from ml_backend.domain.shown import shown


class Settings(BaseSettings):
    """Everything that can be set, each as ``RUSH_<NAME>`` in the environment or in a ``.env`` file."""

    model_config = SettingsConfigDict(
        env_prefix="RUSH_",
        env_file=".env",
        extra="ignore",
        populate_by_name=True,
        allow_inf_nan=False,
    )

    data_dir: Path = Field(Path(".rush"), description="Features, generations, index and Redis file.")
    redis_url: str = Field(
        "", description="Redis to use; empty starts the bundled server in the data directory."
    )
    qdrant_url: str = Field(
        "", description="Qdrant server to use; empty uses the engine embedded in the backend."
    )
    qdrant_api_key: SecretStr = Field(
        SecretStr(""), description="Key that the Qdrant server asks for; needs an https:// address."
    )
    qdrant_grpc: bool = Field(False, description="Talk gRPC (port 6334) to the Qdrant server.")
    label_studio_url: str = Field(
        "",
        description="Label Studio's address as seen from the backend.",
        validation_alias="LABEL_STUDIO_URL",
    )
    label_studio_api_key: SecretStr = Field(
        SecretStr(""),
        description="Token (legacy or personal access token) the backend uses.",
        validation_alias="LABEL_STUDIO_API_KEY",
    )
    host: str = Field("127.0.0.1", description="Address the backend listens on.")
    port: int = Field(9090, ge=1, le=65535, description="Port the backend listens on.")
    public_url: str = Field(
        "", description="The backend's address as seen from Label Studio; empty means http://HOST:PORT."
    )
    replica_url: str = Field(
        "",
        description="This backend's own address as other replicas of it see it; set it where several run.",
    )
    basic_auth_user: str = Field("", description="User name that Label Studio must send; empty means none.")
    basic_auth_password: SecretStr = Field(SecretStr(""), description="Password that goes with it.")
    token: SecretStr = Field(
        SecretStr(""),
        description="Token that scripts and other machines' command lines may send instead, as "
        "Authorization: Bearer; needs the user name.",
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="Value of the X-Rush-Secret header that webhooks must carry; empty means none.",
    )
    strategy: str = Field("rush", description="Query strategy of projects that have not chosen one.")
    window: int = Field(200, ge=10, description="Tasks that hold a prediction, which is the queue.")
    train_labels: int = Field(20, ge=1, description="New labels that trigger a training round.")
    train_seconds: float = Field(5.0, ge=0, description="Least seconds between two training rounds.")
    sync_seconds: float = Field(
        300.0, ge=0, description="Seconds between two automatic syncs; 0 turns them off."
    )
    coordinates: Literal["meta", "data", "off"] = Field(
        "meta", description="Where the map is written back: meta, meta and data columns, or nowhere."
    )
    backbone: str = Field("efficientnet-lite0", description="Embedding model.")
    image_size: Annotated[int, Field(ge=64)] | Literal["auto"] = Field(
        "auto",
        description="Side in pixels that images are embedded at. auto: 160 where a new project's images have "
        "no more than 64 pixels on their longer side, else 224.",
    )
    device: str = Field("auto", description="Where training runs: auto, cpu, cuda.")
    gpus: int = Field(0, ge=0, description="GPUs that a fine-tuning run uses together; 0 uses all.")
    self_epochs: int = Field(
        -1,
        ge=-1,
        description="Epochs of a fine-tuning run's self-training over the images without a label; more is "
        "better and slower. -1: 20 on a GPU; on a CPU as many steps as the labelled images had.",
    )
    allowed_hosts: str = Field(
        "", description="Other hosts that images may be fetched from, comma separated; * allows all."
    )
    local_files_root: str = Field(
        "",
        description="Label Studio's local-files document root, where it is on this machine: "
        "images below it are imported in place, others are uploaded.",
        validation_alias="LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
    )
    file_roots: str = Field(
        "", description="Folders that file paths in tasks may point into, comma separated."
    )
    max_image_mb: float = Field(50.0, gt=0, description="Largest image file that is read.")
    max_megapixels: float = Field(100.0, gt=0, description="Largest image that is decoded.")
    max_body_mb: float = Field(64.0, gt=0, description="Largest request body that is read.")
    log_level: str = Field("INFO", description="Log level.")

    @field_validator("*", mode="before")
    @classmethod
    def _trimmed(cls, value: Any, info: ValidationInfo) -> Any:
        """Blanks around a value come from copying and mean nothing; a value of blanks is none."""
        if not isinstance(value, str):
            return value
        return value.strip() or cls.model_fields[str(info.field_name)].default

    @field_validator("host")
    @classmethod
    def _bare(cls, value: str) -> str:
        """An address of IPv6 may come in the brackets that it has in a URL."""
        return value[1:-1] if value.startswith("[") and value.endswith("]") else value

    @field_validator("label_studio_url", "public_url", "replica_url", "qdrant_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        except ValueError:  # its words would show what is before an @
            fine = False
        if value and not fine:
            raise ValueError("not an address like http://host:port")
        if value and (parts.query or parts.fragment):
            raise ValueError("an address of a server has no ? and no #")
        return value

    @field_validator("label_studio_url", "public_url", "replica_url", "qdrant_url", "redis_url")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if any(character.isspace() for character in value):
            raise ValueError("an address has no blank in it")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            fine = parts.scheme in ("redis", "rediss", "unix") and "@" not in parts.path and (parts.port or 1)
        except ValueError:
            fine = False
        if value and not fine:
            raise ValueError(
                "no address of a Redis: write redis://:password@host:6379/0, special characters of the "
                "password as %2F and the like"
            )
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        known = logging.getLevelNamesMapping()
        if value.upper() not in known:
            raise ValueError(f"not one of {', '.join(sorted(known, key=lambda name: known[name]))}")
        return value.upper()

    @property
    def backend_url(self) -> str:
        """The address that Label Studio is told to call."""
        return (self.public_url or self.own_url).rstrip("/")

    @property
    def own_url(self) -> str:
        """The address that the backend listens at."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @classmethod
    def read(cls) -> Settings:
        """The settings of this process; BadRequest names the variable that can't be one."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            variable = name if name.isupper() else f"RUSH_{name.upper()}"
            reason = first["msg"].removeprefix("Value error, ")
            given = shown(str(first["input"]).rpartition("@")[2], 60)  # before an @ may be a password
            raise BadRequest(
                f"{variable} is {given!r}: {reason}.",
                "Set another value, in the environment or in .env; README.md has the table of settings.",
            ) from None
        except UnicodeDecodeError as error:
            raise BadRequest(f".env is not UTF-8: {error}.", "Save it as UTF-8.") from None

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a process that is to have the same."""
        found: dict[str, str] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            found[str(field.validation_alias or f"RUSH_{name.upper()}")] = text
        return found


def authorities() -> ssl.SSLContext | bool:
    """Who vouches for https servers: SSL_CERT_FILE and SSL_CERT_DIR, else REQUESTS_CA_BUNDLE.

    True where none is set: the usual ones. BadRequest where one names nothing that can be read.
    """
    given = {name: os.environ.get(name, "").strip() for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    if not any(given.values()):
        given = {"REQUESTS_CA_BUNDLE": os.environ.get("REQUESTS_CA_BUNDLE", "").strip()}
    context = None
    for name, place in given.items():
        if not place:
            continue
        context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        folders = any(Path(folder).is_dir() for folder in place.split(os.pathsep))
        try:
            context.load_verify_locations(**{"capath" if folders else "cafile": place})
        except OSError as error:  # ssl.SSLError is one
            raise BadRequest(
                f"{name} is {place!r}, which holds no certificates that can be read: {error}.",
                "Name a PEM file of the authorities to trust.",
            ) from None
    return True if context is None else context
