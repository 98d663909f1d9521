"""`vla-razor push RUN OWNER/NAME`: what `save` writes, on the Hugging Face Hub.

Who is logged in, and whether others can find an adapter's base, is asked before the work. The upload is one commit:
others see all of it or nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (of its HTTP library, whichever that is)
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id
from omegaconf import DictConfig
from rich.console import Console

from vla_razor.errors import RunFailed, UserError
from vla_razor.policies.openvla import lora
from vla_razor.runs import Run, checkpoint_folder
from vla_razor.verbs.deploy import save


def run(config: DictConfig, run: Run) -> None:
    """Write the folder and upload it."""
    if config.policy is None or config.repo is None:
        raise UserError("push needs a policy and a repository: vla-razor push RUN OWNER/NAME.")
    try:
        validate_repo_id(config.repo)
    except HFValidationError as error:
        raise UserError(f"repo={config.repo}: {error}") from error
    _check_base(config)
    api = HfApi()
    with _asked(config.repo):
        api.whoami()
    run.restore()
    folder, facts = save.written(config, run)
    with _asked(config.repo):
        api.create_repo(config.repo, private=config.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=config.repo,
            folder_path=folder,
            commit_message=f"{Path(config.policy).resolve().name}, by vla-razor",
        )
    run.finish({"checkpoint": str(folder), "repository": config.repo, "commit": commit.oid, **facts})
    Console().print(f"{folder}\n{commit.commit_url}", highlight=False, soft_wrap=True)


def _check_base(config: DictConfig) -> None:
    """Raises UserError for an adapter whose base only this machine has."""
    source = checkpoint_folder(Path(config.policy))
    if source is None or config.merge or config.base_name or not (source / lora.ADAPTER_CONFIG_FILE).is_file():
        return
    base = str(lora.read_config(source).base_model_name_or_path)
    if Path(base).exists():
        raise UserError(
            f"policy={config.policy} is an adapter of {base}, a folder that others do not have: say where they find it "
            "with base_name=OWNER/NAME, or give away the whole policy with merge=true."
        )


@contextmanager
def _asked(repo: str) -> Iterator[None]:
    """Turns what the Hub answers into one message."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError("nobody is logged in to the Hub: `hf auth login`, or set HF_TOKEN.") from error
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded.") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"repo={repo}: the Hub refuses it to this login: {error.server_message or error}"
            ) from error
        raise RunFailed(f"repo={repo}: the Hub answered: {str(error).splitlines()[0]}") from error
    except (HTTPError, OSError) as error:
        raise RunFailed(f"repo={repo}: the Hub cannot be reached: {error}") from error
