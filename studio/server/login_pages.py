"""The pages that a browser sees before it has signed in: plain HTML without a script or another file."""

from __future__ import annotations

import html

STYLE = """
:root { color-scheme: light dark; --ink: #16202e; --soft: #4a5768; --paper: #f4f6f9; --card: #fff;
  --line: #c9d1dc; --accent: #1f5fd0; --on-accent: #fff; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8edf4; --soft: #a9b5c5; --paper: #10151d;
  --card: #1a212c; --line: #3a4656; --accent: #7aa7ff; --on-accent: #0b1320; --bad: #ff9a92; } }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { box-sizing: border-box; width: min(420px, calc(100vw - 32px)); margin: 32px 0; padding: 28px;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
h1 { margin: 0 0 8px; font-size: 20px; }
p { margin: 8px 0; color: var(--soft); }
code { padding: 1px 5px; border: 1px solid var(--line); border-radius: 5px; font-size: 14px;
  overflow-wrap: anywhere; }
label { display: block; margin-top: 14px; font-size: 14px; }
input { box-sizing: border-box; width: 100%; margin-top: 4px; padding: 10px 12px; font: inherit;
  color: inherit; background: transparent; border: 1px solid var(--line); border-radius: 8px; }
button, a.button { box-sizing: border-box; display: block; width: 100%; min-height: 44px; margin-top: 20px;
  padding: 10px; border: 0; border-radius: 8px; font: inherit; font-weight: 600; text-align: center;
  text-decoration: none; background: var(--accent); color: var(--on-accent); cursor: pointer; }
a { color: var(--accent); }
:is(input, button, a):focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
p[role=alert] { color: var(--bad); }
"""
PROVIDER = """<p><a class="button" href="login/huggingface">Sign in with Hugging Face</a></p>"""
FORM = """<form method="post" action="login">
<label>Name<input name="username" autocomplete="username" required></label>
<label>Password
<input name="password" type="password" autocomplete="current-password" required></label>
<button>Sign in</button>
</form>"""
REOPEN = '<meta http-equiv="refresh" content="0">'


def render_login(
    problem: str = "",
    reopens: bool = False,
    *,
    has_form: bool = True,
    has_provider: bool = False,
    root: str = "",
) -> str:
    """The page for signing in.

    Args:
        problem: why the last attempt was refused.
        reopens: the browser opens the URL once more, from this page.
        has_form: users have passwords.
        has_provider: users of a Space sign in with their Hugging Face account.
        root: the way from this page to the first one, where that is not "./".
    """
    alert = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    ways = (PROVIDER if has_provider else "") + (FORM if has_form else "")
    return _render(f"<h1>Adapter Studio</h1>{alert}\n{ways}", reopens, root)


def render_sign_out(name: str) -> str:
    """Asks whether a user wants to sign out: only a form of this site can do it."""
    return _render(f"""<h1>Sign out of Adapter Studio</h1>
<p>You are signed in as {html.escape(name)}.</p>
<form method="post" action="logout"><button>Sign out</button></form>
<p><a href="./">Back to the studio</a></p>""")


def render_notice(is_used: bool = False, reopens: bool = False) -> str:
    """Says where the login link is.

    Args:
        is_used: the visitor came with a link that is not valid.
        reopens: the browser opens the URL once more, from this page.
    """
    alert = '<p role="alert">This login link was used already, or is not complete.</p>' if is_used else ""
    return _render(
        f"""<h1>Sign in to Adapter Studio</h1>{alert}
<p>Open the newest login link: the console in which the studio was started shows it, as
<code>…/?token=…</code>. Each link works once, and the console then shows the next one.</p>
<p>No console at hand? Restart the studio, or start it with <code>--no-token</code> on a machine that only you
use.</p>""",
        reopens,
    )


def render_refusal(what: str, fix: str) -> str:
    """Says why the page does not open, and what to do."""
    alert = f'<p role="alert">{html.escape(what)}</p>'
    return _render(f"<h1>Adapter Studio</h1>{alert}<p>{html.escape(fix)}</p>")


def _render(body: str, reopens: bool = False, root: str = "") -> str:
    base = f'<base href="{root}">' if root else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{base}
<meta name="viewport" content="width=device-width, initial-scale=1">
{REOPEN if reopens else ""}<meta name="robots" content="noindex"><title>Sign in · Adapter Studio</title>
<style>{STYLE}</style></head><body><main>
{body}
</main></body></html>
"""
