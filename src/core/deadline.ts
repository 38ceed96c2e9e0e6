/**
 * Settles as `work` does, or rejects with what `onTimeout` makes once `limitMs` have passed. The work itself goes on;
 * its late rejection is not an unhandled one.
 */
export function settleWithin<T>(work: Promise<T>, limitMs: number, onTimeout: () => Error): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const timer = setTimeout(() => reject(onTimeout()), limitMs)
    work.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}
