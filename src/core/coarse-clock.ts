const resolutionMs = 10

let present = 0
let wasAsked = false
let timer: NodeJS.Timeout | undefined

/**
 * `performance.now()` as of at most 10 ms ago, or as of the last turn of the event loop while that is held up: for what is asked for
 * so often that the time itself would be most of the cost. Its timer runs only while it is asked.
 */
export function coarseNow(): number {
  wasAsked = true
  return timer === undefined ? start() : present
}

function start(): number {
  timer = setInterval(tick, resolutionMs)
  timer.unref()
  present = performance.now()
  return present
}

function tick(): void {
  present = performance.now()
  if (!wasAsked) {
    clearInterval(timer)
    timer = undefined
  }
  wasAsked = false
}
