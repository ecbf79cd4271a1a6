"""Files of a model to a repository of Hugging Face's hub, with the user's own token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distcxr.models.weights import probe

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def open_repository(repo: str, names: list[str], *, force: bool) -> tuple[HfApi, str]:
    """The hub, logged in to, and the whole name of a repository, which need not be there yet.

    Asked before the work, so that what would stop `upload` mostly does so at once.

    Args:
        repo: `user/name`, or `name` for the user's own.
        names: of the files to come.
        force: whether files of these names may be there.

    Raises:
        ValueError: no token, no network, not a name, or files of these names are there.
    """
    import huggingface_hub

    token = huggingface_hub.get_token()
    if not token:
        raise ValueError(f"--push {repo} takes a token of yours that may write: run `hf auth login`, or set HF_TOKEN")
    with _naming(repo):
        probe(huggingface_hub.constants.ENDPOINT)  # its client would retry for most of a minute
        api = huggingface_hub.HfApi(token=token)
        whole = repo if "/" in repo else f"{api.whoami()['name']}/{repo}"
        there = sorted(set(api.list_repo_files(whole)) & set(names)) if api.repo_exists(whole) else []
    if there and not force:
        raise ValueError(f"{whole} holds {', '.join(there)} already: name another repository, or add --force")
    return api, whole


def upload(api: HfApi, repo: str, files: Mapping[str, Path], message: str) -> str:
    """Upload files by their names in the repository, all in one commit; returns its address.

    The repository is made, private, where it is not there.

    Raises:
        ValueError: the hub does not take them, or can't be reached.
    """
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    with _naming(repo):
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.create_commit(repo, operations=operations, commit_message=message).commit_url)


@contextmanager
def _naming(repo: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"--push {repo}: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        may = "; does the token have the right to write there?" if status in (401, 403) else ""
        raise ValueError(f"--push {repo}: the hub refuses ({str(error).splitlines()[0]}){may}") from error
    except Exception as error:  # of the client's own HTTP library, which is not the same in all its versions
        raise ValueError(f"--push {repo}: the hub can't be reached ({type(error).__name__}: {error})") from error
