const resolutionMs = 10

let present = 0
/** How far a test has put the clock forward. */
let aheadMs = 0
let wasAsked = false
let timer: NodeJS.Timeout | undefined

/**
 * {@link exactNow} as of at most 10 ms ago, or as of the last turn of the event loop while that is held up: for what is asked for
 * so often that the time itself would be most of the cost. Its timer runs only while it is asked.
 */
export function coarseNow(): number {
  wasAsked = true
  return timer === undefined ? start() : present
}

/** `performance.now()`, and what {@link moveClock} has put it forward: by this clock values in memory expire. */
export function exactNow(): number {
  return performance.now() + aheadMs
}

/** For tests: puts this clock of the whole process forward, or back by less than it was put forward. */
export function moveClock(byMs: number): void {
  aheadMs += byMs
  present += byMs
}

function start(): number {
  timer = setInterval(tick, resolutionMs)
  timer.unref()
  present = exactNow()
  return present
}

function tick(): void {
  present = exactNow()
  if (!wasAsked) {
    clearInterval(timer)
    timer = undefined
  }
  wasAsked = false
}
