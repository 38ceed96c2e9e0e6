/**
 * The reference domain, a small shop with a community: entities, the interfaces of their stores, and these stores on
 * PostgreSQL. Nothing else of kanta knows it; your own domain is built the same way.
 *
 * @module kanta/domain
 */
export type { PasswordHasher } from './domain/password-hasher.ts'
export type { CataloguePage, Category, Product, ProductStore, ProductWithCategories } from './domain/product.ts'
export type { NewUser, User, UserPage, UserRole, UserStore } from './domain/user.ts'
export type { ConstraintName, DB } from './generated/schema.ts'
export { ProductRepository } from './repositories/product-repository.ts'
export { type ScryptHasherOptions, scryptPasswordHasher } from './repositories/scrypt-password-hasher.ts'
export { UserRepository } from './repositories/user-repository.ts'
