#!/usr/bin/env python3
"""Turns a screen as `tmux capture-pane -epN` prints it into an SVG; colours are read by the library `rich`:

    HAYLOFT_STATS_SHM=1 HAYLOFT_GUARD=20000 HAYLOFT_PROFILE=/tmp/%p.pb.gz,mean=64K LD_PRELOAD=$PWD/target/release/libhayloft.so \\
        redis-server --save '' --maxmemory 90mb --maxmemory-policy allkeys-random &
    tmux new-session -d -x 116 -y 30 target/release/hayloft-top
    for size in 24 900 100 3000 24 900 100 3000 24 900 100 3000; do
        timeout 6 redis-benchmark -t set,lpush,hset,sadd,zadd,lpop -r 50000 -n 40000 -d $size -q
    done
    tmux capture-pane -epN | docs/pictures/screen.py > docs/pictures/hayloft-top.svg
    tmux send-keys 4    # sites, for hayloft-top-sites.svg

Each word is placed by itself, and bars are rectangles, so that it looks the same whatever font there is.
"""
import re
import sys
from html import escape

from rich.text import Text

WIDTH, HEIGHT, FONT, MARGIN = 8.4, 18, 14, 10
GROUND, INK = "#fafaf8", "#282c34"
COLOURS = {1: "#c43232", 2: "#28823c", 6: "#148291"}
BARS = "▁▂▃▄▅▆▇█"

lines = [Text.from_ansi(line) for line in sys.stdin.read().rstrip("\n").split("\n")]
columns = max(line.cell_len for line in lines)
width, height = columns * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
print(f'<svg viewBox="0 0 {width:.0f} {height}" xmlns="http://www.w3.org/2000/svg">')
print(f'<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>')
print(f'<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{FONT}" fill="{INK}">')


def style_at(line, place):
    """Ink, ground, and whether it is bold and underlined."""
    ink, ground, bold, underline = INK, None, False, False
    for span in line.spans:
        if span.start <= place < span.end:
            style = span.style
            if style.color is not None and style.color.number is not None:
                ink = COLOURS.get(style.color.number, INK)
            bold, underline = style.bold or bold, style.underline or underline
            if style.reverse:
                ink, ground = GROUND, INK
    return ink, ground, bold, underline


for row, line in enumerate(lines):
    text, y = line.plain, MARGIN + row * HEIGHT
    styles = [style_at(line, place) for place in range(len(text))]
    x = lambda place: MARGIN + place * WIDTH
    start = 0
    for place in range(1, len(text) + 1):
        if place == len(text) or styles[place][1] != styles[start][1]:
            if styles[start][1]:
                print(f'<rect x="{x(start):.1f}" y="{y}" width="{(place - start) * WIDTH:.1f}" height="{HEIGHT}" fill="{styles[start][1]}"/>')
            start = place
    bars = {}
    for place, letter in enumerate(text):
        if letter in BARS:
            bar = (BARS.index(letter) + 1) * (HEIGHT - 2) / 8
            bars.setdefault(styles[place][0], []).append(f"M{x(place):.1f} {y + HEIGHT}v-{bar:g}h{WIDTH}v{bar:g}z")
    for ink, paths in bars.items():
        print(f'<path fill="{ink}" d="{"".join(paths)}"/>')
    for word in re.finditer(rf"[^\s{BARS}]+", text):
        place = word.start()
        # A word may change its style.
        while place < word.end():
            end = next((at for at in range(place, word.end()) if styles[at] != styles[place]), word.end())
            ink, _, bold, underline = styles[place]
            more = "".join([
                f' fill="{ink}"' if ink != INK else "",
                ' font-weight="bold"' if bold else "",
                ' text-decoration="underline"' if underline else "",
            ])
            print(f'<text x="{x(place):.1f}" y="{y + 14}" textLength="{(end - place) * WIDTH:.1f}"{more}>{escape(text[place:end])}</text>')
            place = end
print("</g>\n</svg>")
