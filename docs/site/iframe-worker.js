// Search in pages opened from a folder: browsers start no worker there, so its script runs in a hidden frame instead.
// (The offline plugin of mkdocs-material would fetch such a script from the web; one of this name keeps it from that.)
class FrameWorker extends EventTarget {
  constructor(url) {
    super()
    this.frame = document.createElement("iframe")
    this.frame.hidden = true
    document.body.appendChild(this.frame)
    const inner = this.frame.contentDocument
    inner.open()
    inner.write("<!doctype html><html><body></body></html>")
    inner.close()
    const scope = this.frame.contentWindow
    scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
    const load = source =>
      new Promise((done, failed) => {
        const script = inner.createElement("script")
        script.src = source
        script.onload = done
        script.onerror = failed
        inner.body.appendChild(script)
      })
    scope.importScripts = (...sources) => sources.reduce((last, source) => last.then(() => load(source)), Promise.resolve())
    this.ready = load(url)
  }

  postMessage(data) {
    this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
  }

  terminate() {
    this.frame.remove()
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker
