/**
 * The reference domain, a small shop with a community: entities, the interfaces of their stores, and these stores on
 * PostgreSQL. Nothing else of kanta knows it; your own domain is built the same way.
 *
 * @module kanta/domain
 */
export {
  CustomerUnavailableError,
  DomainError,
  IdempotencyKeyReusedError,
  IllegalOrderChangeError,
  InsufficientStockError,
  InvalidOrderError,
  isDomainError,
  MixedCurrenciesError,
  OrderTooLargeError,
  ProductUnavailableError,
} from './domain/errors.ts'
export type { DomainErrorCode, StockShortage } from './domain/errors.ts'
export type {
  Order,
  OrderItem,
  OrderLine,
  OrderOptions,
  OrderPage,
  OrderProcessing,
  OrderRef,
  OrderStatus,
  OrderStore,
  OrderWithItems,
} from './domain/order.ts'
export type { PasswordHasher } from './domain/password-hasher.ts'
export type {
  Author,
  Comment,
  CommentPage,
  CommentStore,
  CommentWithAuthor,
  Contributor,
  ContributorOptions,
  FeedPage,
  FeedPost,
  Like,
  LikeStore,
  NewPost,
  Post,
  PostPatch,
  PostRef,
  PostStore,
} from './domain/post.ts'
export type {
  CataloguePage,
  Category,
  CategoryNode,
  CategoryStore,
  LowStockOptions,
  NewCategory,
  NewProduct,
  PlacedCategory,
  PricePage,
  PriceRange,
  Product,
  ProductMatch,
  ProductPatch,
  ProductRef,
  ProductSales,
  ProductStore,
  ProductWithCategories,
  RefreshOptions,
  RefreshResult,
  SearchOptions,
  StatisticsAge,
  StatisticsStore,
} from './domain/product.ts'
export type {
  Money,
  NewUser,
  Profile,
  ProfileValues,
  User,
  UserFilter,
  UserPage,
  UserPatch,
  UserRef,
  UserRole,
  UserStats,
  UserStore,
  UserWithPosts,
  UserWithProfile,
} from './domain/user.ts'
export type { ConstraintName, DB } from './generated/schema.ts'
export { CategoryRepository } from './repositories/category-repository.ts'
export { CommentRepository } from './repositories/comment-repository.ts'
export { LikeRepository } from './repositories/like-repository.ts'
export { OrderRepository } from './repositories/order-repository.ts'
export { OrderService, type OrderServiceOptions } from './repositories/order-service.ts'
export { PostRepository } from './repositories/post-repository.ts'
export { ProductRepository } from './repositories/product-repository.ts'
export { SalesStatistics } from './repositories/sales-statistics.ts'
export { type ScryptHasherOptions, scryptPasswordHasher } from './repositories/scrypt-password-hasher.ts'
export { UserRepository } from './repositories/user-repository.ts'
