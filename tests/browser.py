"""A Chromium for the tests: the computer's own, else Playwright's; where there is neither, they are skipped, loudly."""

import shutil

import pytest


def launched(driver, flags):
    """A browser of `driver` (an entered `sync_playwright()`), started with `flags`; skips where none can be."""
    from playwright.sync_api import Error

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        return driver.chromium.launch(executable_path=found, args=["--no-sandbox", *flags])
    except Error as error:
        pytest.skip(f"NO BROWSER TESTS: no Chromium here; make test installs one ({str(error).splitlines()[0]})")
