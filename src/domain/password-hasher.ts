/** Turns passwords into hashes that can be kept, and compares the two. */
export interface PasswordHasher {
  /** A hash that describes itself: method, cost and salt are part of it. Two calls give two hashes. */
  hash(password: string): Promise<string>
  /** Whether a hash was made from this password; takes equally long for a right and a wrong one. */
  verify(password: string, hash: string): Promise<boolean>
}
