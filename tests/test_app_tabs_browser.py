"""Every tab of the app in a browser: it opens, shows what it has, and fits the window."""

import pytest
from test_app_browser import LOOKS, address, browser, place, settle, visit  # noqa: F401

from app.main import PAGES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("width, theme", LOOKS)
def test_every_tab_opens_and_fits(visit, address, width, theme):  # noqa: F811
    page = visit(address, width, theme)
    page.locator("#results .thumbnail-item").first.wait_for()
    for tab in PAGES[2:]:
        button = page.get_by_role("tab", name=tab.TITLE, exact=True)
        if not button.is_visible():                                       # a narrow window keeps it behind a menu
            page.locator(".overflow-menu > button").first.click()
            button = page.locator(".overflow-dropdown button", has_text=tab.TITLE)
        button.click()
        panel = page.locator("[role=tabpanel]:visible").first
        panel.wait_for()
        page.wait_for_timeout(1500)                                       # what a tab fills in when it is chosen
        assert panel.inner_text().strip()
        settle(page, f"{tab.ID}-{width}-{theme}")
