"""The style of report.html: one column of text, figures side by side where there is room.

On paper the tables behind figures stay away, as they are in results.csv; what else is folded is shown.
"""

CSS = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
header,main{max-width:72rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.2rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;line-height:1.25;margin:2.6rem 0 .7rem;padding-top:.7rem;border-top:1px solid var(--grid)}
p,li{max-width:46rem;overflow-wrap:anywhere}
.question{font-size:1.15rem;margin:.2rem 0 .8rem;color:var(--faint)}
.headline{font-size:1.15rem;font-weight:600;margin:.2rem 0 1rem}
.name{margin:.8rem 0 .2rem;font-weight:600}
nav ul{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.92rem}
a{color:var(--arm-0);text-underline-offset:.15em}
a:focus-visible,summary:focus-visible,[tabindex]:focus-visible{outline:2px solid var(--arm-0);outline-offset:2px}
.skip{position:absolute;left:-100vw}
.skip:focus{position:static;display:inline-block;padding:.4rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1.6rem 2rem;
align-items:start}
figure{margin:0;min-width:0;break-inside:avoid}
figure.wide{grid-column:1/-1}
figure>svg{display:block;width:100%;height:auto;font-family:"DejaVu Sans",Verdana,sans-serif}
figure>svg *{stroke-linejoin:round;stroke-linecap:butt}
figcaption{font-size:.88rem;color:var(--faint);margin:.3rem 0;max-width:40rem;overflow-wrap:anywhere}
details{margin:.3rem 0;min-width:0}
summary{cursor:pointer;font-size:.88rem;color:var(--faint)}
.scroll{overflow-x:auto;max-width:100%;margin:.5rem 0 1rem}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.2rem 0 .4rem}
th,td{padding:.32rem .8rem .32rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--grid);min-width:3rem;max-width:26rem;overflow-wrap:break-word}
thead th{color:var(--faint);font-weight:600;vertical-align:bottom;overflow-wrap:normal}
tbody th{font-weight:500}
th.n,td.n{text-align:right}td.n{white-space:nowrap}
.arm{white-space:nowrap}.arm.long{white-space:normal;display:inline-block;min-width:14rem;overflow-wrap:anywhere}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;font-size:.88rem}
.chip{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.4em;vertical-align:-.1em}
.strip svg{display:block;border-radius:2px;margin:.1rem 0}
.strip code{font-size:.82em;color:var(--faint)}
code,pre{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
pre{background:color-mix(in srgb,var(--grid) 45%,var(--paper));padding:.7rem .9rem;border-radius:6px;overflow-x:auto;
font-size:.85rem;max-width:100%}
.badge{display:inline-block;white-space:nowrap;padding:.05rem .55rem;border-radius:1rem;border:1.5px solid;
font-weight:600;font-size:.85rem}
.supported{color:var(--arm-2)}
.refuted{color:var(--arm-7);border-style:double;border-width:3px}
.undetermined{color:var(--faint);border-style:dashed}
#left-out{padding-bottom:2rem}
@media (min-width:34.1rem){.stack{width:100%}.stack td:nth-child(3){width:46%;max-width:none}}
@media (max-width:34rem){.stack thead{display:none}.stack,.stack tbody,.stack tr,.stack th,.stack td,.stack caption{
display:block;max-width:none}.stack th,.stack td{border:0;padding:.1rem 0}.stack tr{border-bottom:1px solid var(--grid);
padding:.5rem 0}.stack tbody th{font-weight:700}
.stack td:last-child:not(:empty)::before{content:"bar: ";color:var(--faint)}
body{font-size:15px}h1{font-size:1.5rem}header,main{padding:0 .9rem}header{padding-top:1.2rem}}
@media print{@page{margin:16mm}body{font-size:10pt;background:none}nav,.skip{display:none}h2{break-after:avoid}
.charts{grid-template-columns:1fr 1fr}figure details{display:none}details>summary{list-style:none}
details::details-content{content-visibility:visible;
display:block;height:auto}.scroll{overflow:visible}pre{white-space:pre-wrap}tr{break-inside:avoid}svg,.strip,.badge{
print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
