/** Search by words without PostgreSQL: close enough for tests, with a few English endings instead of a dictionary. */

/** What was asked for, to be held against products. */
export interface SearchTerms {
  /** 0 where it does not match; more than 1 where it does in the name alone. */
  rank(name: string, description: string): number
}

interface Term {
  /** Words that follow each other. */
  readonly words: readonly string[]
  readonly isWanted: boolean
}

const withoutMeaning: ReadonlySet<string> = new Set(
  'a an and are as at by for from in is it of on or that the to with'.split(' '),
)

/** Quotes, `or` and minus as `websearch_to_tsquery` takes them. Text that says nothing matches nothing. */
export function searchTerms(text: string): SearchTerms {
  const alternatives: Term[][] = [[]]
  const spaced = text.replaceAll(/[!&|()]/g, ' ')
  for (const [token, minus, phrase, word = ''] of spaced.matchAll(/(-\s*)?(?:"([^"]*)"|([^\s"-][^\s"]*))/g)) {
    if (token.toLowerCase() === 'or') alternatives.push([])
    else {
      const words = wordsOf(phrase ?? word)
      if (words.length > 0) alternatives.at(-1)?.push({ words, isWanted: minus === undefined })
    }
  }
  const known = alternatives.filter((terms) => terms.length > 0)
  const matches = (body: string[]): boolean =>
    known.some((terms) => terms.every(({ words, isWanted }) => contains(body, words) === isWanted))
  return {
    rank: (name, description) => {
      if (!matches([...wordsOf(name), ...wordsOf(description)])) return 0
      return matches(wordsOf(name)) ? 1.5 : 0.5
    },
  }
}

function wordsOf(text: string): string[] {
  const words = text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []
  return words.filter((word) => !withoutMeaning.has(word)).map(stem)
}

function stem(word: string): string {
  if (word.length < 4) return word
  return word
    .replace(/(?:ies|y)$/, 'i')
    .replace(/(?:ing|es|ed|s)$/, '')
    .replace(/e$/, '')
}

function contains(body: readonly string[], words: readonly string[]): boolean {
  return body.some((_, index) => words.every((word, place) => body[index + place] === word))
}

/** How much a name, or some words of it that follow each other, is like a text: trigrams in common, from 0.6 to 1, or 0. */
export function likeness(text: string, name: string): number {
  const asked = trigrams(plainWords(text))
  const words = plainWords(name)
  let best = 0
  for (let from = 0; from < words.length; from++) {
    for (let to = from + 1; to <= words.length; to++) {
      const extent = trigrams(words.slice(from, to))
      const common = [...extent].filter((trigram) => asked.has(trigram)).length
      best = Math.max(best, common / (asked.size + extent.size - common))
    }
  }
  return best >= 0.6 ? best : 0
}

function plainWords(text: string): string[] {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []
}

function trigrams(words: readonly string[]): Set<string> {
  return new Set(
    words.flatMap((word) => {
      const padded = `  ${word} `
      return Array.from({ length: padded.length - 2 }, (_, index) => padded.slice(index, index + 3))
    }),
  )
}
