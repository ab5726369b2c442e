"""The page in a headless Chromium: upload, ask, watch the stages come and fold; nothing goes wrong on it."""

import base64
import io
import os
import time
from pathlib import Path

import pytest
from browser import Browser
from PIL import Image
from scratch import picture, scratch_vlm, search_options

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from talk_page import Script, Served

from cobra.demo.examples import example_pictures
from cobra.talk import page as talk_page_module
from cobra.talk.options import TalkFlags

WAIT_SECONDS = 120
SEARCHING = TalkFlags(max_new_tokens=8, search="vote")
OPEN = "Array.from(document.querySelectorAll('.stage')).map(s => s.className.split(' ').at(-1) + (s.open ? '+' : '-'))"
TEXTS = "Array.from(document.querySelectorAll('.block .text, .outside')).map(b => b.textContent)"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        scripted = Script()
        patch.setattr(talk_page_module, "Conversation", scripted)
        yield scripted


@pytest.fixture(scope="module")
def server(script):
    welcome = talk_page_module.Welcome("cobra-tiny knows rendered shapes, not photographs.", example_pictures())
    # The script answers searches.
    with Served(scratch_vlm(), SEARCHING, name="cobra-tiny", welcome=welcome) as started:
        yield started


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(browser, server, script):
    """The page, just opened; at the end nothing may have gone wrong, and no other server may have been asked."""
    browser.screen(1100, 800)
    browser.open(server)
    # The talk of the test before would go on.
    browser.run("begin()")
    browser.open(server)
    script.asked.clear()
    yield browser
    own = (server.url, "blob:")
    assert [found for found in browser.problems() if not (isinstance(found, str) and found.startswith(own))] == []


def until(page, expression):
    """Wait for an expression to be true; the time limit is for what never comes."""
    end = time.monotonic() + WAIT_SECONDS
    while not page.run(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.01)


def upload(page, data):
    """Choose a file, as a reader would."""
    page.run(
        f"(() => {{ const bytes = Uint8Array.from(atob('{base64.b64encode(data).decode()}'), c => c.charCodeAt(0));"
        "const chosen = new DataTransfer(); chosen.items.add(new File([bytes], 'a.png'));"
        "const field = document.getElementById('file'); field.files = chosen.files;"
        "field.dispatchEvent(new Event('change')); })()"
    )
    until(page, "!document.getElementById('ask').disabled")


def ask(page, question):
    """Ask, insisting on it where there is no picture."""
    page.run(f"document.getElementById('question').focus(), document.getElementById('question').value = {question!r}")
    page.press("Enter", 13, "\r")
    page.run("document.getElementById('blind').hidden || document.getElementById('insist').click()")


def shown(page, key):
    return page.run(f"document.getElementById('{key}').getClientRects().length > 0")


def say(page, script, *pieces):
    """Let the model say something, and wait until the last of it is there."""
    for piece in pieces:
        script.said.put(piece)
    if pieces[-1] is None:
        until(page, "!document.querySelector('.writing')")


def png(kind="png"):
    data = io.BytesIO()
    picture(1).save(data, kind)
    return data.getvalue()


def test_a_picture_is_talked_about_and_its_stages_fold(page, script, tmp_path):
    upload(page, png())
    until(page, "document.getElementById('preview').naturalWidth === 48")
    ask(page, "How many shapes?")
    say(page, script, "<SUMMARY> I count. </SUMMARY>\n\n", "<CAPTION> A red", " circle. </CAPTION>\n\n<REASON")
    until(page, f"{TEXTS}.join('|') === 'I count.|A red circle.'")
    # While the answer is written what there is lies open, and Stop is there in place of Ask.
    assert page.run(OPEN) == ["summary+", "caption+"]
    assert page.run("[document.getElementById('ask').hidden, document.getElementById('stop').hidden]") == [True, False]
    page.run("document.querySelector('.caption summary').click()")
    page.run("document.querySelector('.caption summary').click()")
    say(page, script, "ING> One circle. </REASONING>\n\n<CONCLUSION>", " 1 </CONCLUSION>", None)
    # The caption was touched by the reader, and stays as it is.
    assert page.run(OPEN) == ["summary-", "caption+", "reasoning-", "conclusion+"]
    assert page.run(TEXTS) == ["I count.", "A red circle.", "One circle.", "1"]
    figures = page.run("document.querySelector('.figures').textContent")
    assert figures == "63 tokens \u00b7 126.0 tokens/s \u00b7 1,234 read \u00b7 state 49,152 bytes"
    page.run("document.querySelector('.reasoning summary').click()")
    assert page.run(OPEN)[2] == "reasoning+"
    [(question, _, image)] = script.asked
    assert question == "How many shapes?" and image.tobytes() == picture(1).tobytes()
    shots = Path(os.environ.get("COBRA_SCREENSHOTS") or tmp_path)
    for width, scheme in ((1100, "light"), (1100, "dark"), (390, "light"), (390, "dark")):
        page.screen(width, 800, scheme)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(shots / f"talk-{width}-{scheme}.png")
        assert (shots / f"talk-{width}-{scheme}.png").stat().st_size > 5000


@pytest.mark.fault("E13")
def test_a_picture_is_asked_for_first(page, script):
    page.run("document.getElementById('question').focus(), document.getElementById('question').value = 'What?'")
    page.press("Enter", 13, "\r")
    assert "Choose a picture first. Without one the model sees nothing" in page.run(
        "document.getElementById('blind').textContent"
    )
    assert (
        shown(page, "blind") and script.asked == [] and page.run("document.querySelectorAll('.question').length") == 0
    )
    # The question is not lost, and is asked about the picture.
    upload(page, png())
    assert not shown(page, "blind")
    page.run("document.getElementById('form').requestSubmit()")
    say(page, script, "a", None)
    assert [(question, image is None) for question, _, image in script.asked] == [("What?", False)]
    assert page.run("document.querySelectorAll('.unseen').length") == 0


@pytest.mark.fault("E13")
def test_who_insists_on_no_picture_is_told_at_the_answer(page, script):
    ask(page, "What?")
    say(page, script, "a", None)
    assert page.run("document.querySelector('.unseen').textContent").startswith("asked without a picture")
    # From then on without asking again.
    page.run("document.getElementById('question').focus(), document.getElementById('question').value = 'Why?'")
    page.press("Enter", 13, "\r")
    say(page, script, "b", None)
    assert not shown(page, "blind") and page.run("document.querySelectorAll('.unseen').length") == 2


@pytest.mark.fault("E13")
def test_an_example_is_clicked_and_shown_with_hard_edges(page, script):
    assert page.run("document.querySelectorAll('.example').length") == 3
    page.run("document.querySelectorAll('.example')[1].click()")
    until(page, "conversation && document.getElementById('preview').naturalWidth === 48")
    until(page, "getComputedStyle(document.getElementById('preview')).imageRendering === 'pixelated'")
    page.run("document.getElementById('form').requestSubmit()")
    say(page, script, "a", None)
    [(question, _, image)] = script.asked
    expected = Image.open(io.BytesIO(example_pictures()[1].png))
    assert question == "What is in the picture?" and image.tobytes() == expected.tobytes()


@pytest.mark.fault("E13")
@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped_anywhere(page, script, kind):
    data = base64.b64encode(png()).decode()
    page.run(
        f"(() => {{ const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0));"
        "const given = new DataTransfer(); given.items.add(new File([bytes], 'a.png', { type: 'image/png' }));"
        + (
            "document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: given, bubbles: true })); })()"
            if kind == "paste"
            else "document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: given, bubbles: true })); })()"
        )
    )
    until(page, "conversation && document.getElementById('preview').naturalWidth === 48")


@pytest.mark.fault("E13")
def test_a_reload_keeps_the_talk(page, script, server):
    upload(page, png())
    until(page, "document.getElementById('preview').naturalWidth === 48")
    ask(page, "How many shapes?")
    say(page, script, "<SUMMARY> I count. </SUMMARY>\n\n<CONCLUSION> 1 </CONCLUSION>", None)
    key = page.run("conversation")
    page.open(server)
    until(page, f"conversation === '{key}'")
    assert page.run(TEXTS) == ["I count.", "1"] and page.run(OPEN) == ["summary-", "conclusion+"]
    assert page.run("document.querySelector('.question').textContent") == "How many shapes?"
    until(page, "document.getElementById('preview').naturalWidth === 48")
    ask(page, "Why?")
    say(page, script, "b", None)
    assert page.run("conversation") == key and page.run(TEXTS) == ["I count.", "1", "b"]
    page.run("document.getElementById('anew').click()")
    page.open(server)
    assert page.run("[conversation, sessionStorage.length]") == [None, 0]


@pytest.mark.fault("E13")
def test_a_reload_after_the_server_has_forgotten_is_told(page):
    page.run("""sessionStorage.setItem(KEPT, JSON.stringify({ conversation: "gone", picture: null }))""")
    page.run("restore()")
    assert "has forgotten the conversation" in page.run("document.getElementById('trouble').textContent")
    assert page.run("[conversation, sessionStorage.length]") == [None, 0]


@pytest.mark.fault("E13")
def test_the_search_and_the_models_knowledge_are_told(page):
    assert page.run("document.getElementById('knowledge').textContent").startswith("cobra-tiny knows rendered shapes")
    help_text = page.run("document.getElementById(document.getElementById('search').getAttribute('aria-describedby'))")
    assert help_text is not None and shown(page, "search-help")
    text = page.run("document.getElementById('search-help').textContent")
    assert text.count(".") == 2 and all(kind in text for kind in ("vote", "best-of-n", "stage-beam"))


def test_hostile_text_stays_text(page, script):
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script></p>&lt;b&gt;"
    ask(page, hostile)
    say(page, script, hostile, f"<CONCLUSION>{hostile}", None)
    assert page.run(TEXTS) == [hostile, hostile]
    assert page.run("document.querySelector('.question').textContent") == hostile
    assert page.run("document.querySelectorAll('#turns img, script').length") == 1


def test_the_search_is_chosen_and_the_conversation_goes_on(page, script):
    choose = "document.getElementById('search').dispatchEvent(new Event('input'))"
    page.run(f"document.getElementById('search').value = 'none', {choose}")
    assert page.run("document.getElementById('beams-field').hidden")
    page.run(
        "document.getElementById('search').value = 'stage-beam', document.getElementById('beams').value = 3,"
        "document.getElementById('search').dispatchEvent(new Event('input'))"
    )
    assert not page.run("document.getElementById('beams-field').hidden")
    ask(page, "one")
    say(page, script, "a", None)
    first = page.run("conversation")
    ask(page, "two")
    say(page, script, "b", None)
    assert page.run("conversation") == first and page.run(TEXTS) == ["a", "b"]
    assert [options for _, options, _ in script.asked] == [search_options("stage-beam", 3, max_new_tokens=8)] * 2
    page.run("document.getElementById('anew').click()")
    assert page.run("conversation") is None and page.run(TEXTS) == []


def test_an_answer_is_stopped(page, script):
    while not script.closed.empty():
        script.closed.get()
    ask(page, "What?")
    script.said.put("a red ")
    until(page, f"{TEXTS}.join() === 'a red'")
    page.run("document.getElementById('stop').click()")
    until(page, "document.querySelector('.faults:not(#trouble)')?.textContent === 'stopped'")
    assert not page.run("document.getElementById('ask').hidden")
    while script.closed.empty():
        script.said.put("b ")
        time.sleep(0.01)
    assert script.closed.get() is False
    while not script.said.empty():
        script.said.get()
    ask(page, "Why?")
    say(page, script, "c", None)
    assert page.run(TEXTS) == ["a red", "c"]


def test_a_picture_in_a_format_that_browsers_do_not_show(page):
    upload(page, png("tiff"))
    until(page, "!document.getElementById('unshown').hidden")
    assert page.run("conversation") and page.run("document.getElementById('preview').hidden")


def test_what_is_no_picture_is_told(browser, server):
    """Chromium's console notes every answer of 400, so nothing is asked of it here."""
    browser.open(server)
    upload(browser, b"no picture")
    assert "cannot be opened as a picture" in browser.run("document.getElementById('trouble').textContent")
    upload(browser, png())
    assert browser.run("document.getElementById('trouble').textContent") == ""


@pytest.mark.fault("E13")
def test_a_server_that_has_gone_is_told_in_words(browser, script):
    with Served(scratch_vlm()) as served:
        browser.open(served)
    ask(browser, "What?")
    until(browser, "document.querySelectorAll('#turns .faults').length")
    assert browser.run("document.querySelector('#turns .faults').textContent").startswith("The server does not answer.")
    upload(browser, png())
    assert "does not answer" in browser.run("document.getElementById('trouble').textContent")
