/**
 * The types of the database schema, written by `kanta codegen` from the migrations. Do not edit: change the schema by
 * a migration and generate them again.
 */
import type { ColumnType } from 'kysely'

export type GeneratedAlways<T> = T extends ColumnType<infer S, infer _I, infer _U>
  ? ColumnType<S, never, never>
  : ColumnType<T, never, never>

export type Generated<T> = T extends ColumnType<infer S, infer I, infer U>
  ? ColumnType<S, I | undefined, U>
  : ColumnType<T, T | undefined, T>

export type Int8 = ColumnType<string, bigint | number | string, bigint | number | string>

export type Json = JsonValue

export type JsonArray = JsonValue[]

export type JsonObject = {
  [x: string]: JsonValue | undefined
}

export type JsonPrimitive = boolean | number | string | null

export type JsonValue = JsonArray | JsonObject | JsonPrimitive

export type Numeric = ColumnType<string, number | string, number | string>

export type OrderStatus = 'cancelled' | 'delivered' | 'paid' | 'pending' | 'shipped'

export type Timestamp = ColumnType<Date, Date | string, Date | string>

export type UserRole = 'admin' | 'member' | 'staff'

/** The tree by which the catalogue is browsed. */
export interface Categories {
  created_at: Generated<Timestamp>
  id: Generated<string>
  name: string
  /** The category above; null at the top. */
  parent_id: string | null
  /** The order among the children of one parent; equal positions are ordered by name. */
  position: Generated<number>
  /** The name in addresses; unique in the whole tree. */
  slug: string
  updated_at: Generated<Timestamp>
}

/** What users say about a post. */
export interface Comments {
  author_id: string
  body: string
  created_at: Generated<Timestamp>
  id: Generated<string>
  post_id: string
  updated_at: Generated<Timestamp>
}

/** Which users like which posts; each at most once. */
export interface Likes {
  created_at: Generated<Timestamp>
  post_id: string
  user_id: string
}

/** The lines of an order: each product once. */
export interface OrderItems {
  id: Generated<string>
  order_id: string
  product_id: string
  quantity: number
  /** The price of one piece when it was ordered; later prices do not change it. */
  unit_price_minor: number
}

/** What users have ordered; orders are cancelled, not deleted. */
export interface Orders {
  created_at: Generated<Timestamp>
  /** ISO 4217, for instance EUR; the same for all items. */
  currency: Generated<string>
  id: Generated<string>
  /** What the client calls this order: a repeated request with the same key finds the order instead of making another. */
  idempotency_key: string | null
  status: Generated<OrderStatus>
  /** The sum of the items in the smallest unit of the currency; written in the transaction that writes the items. */
  total_minor: number
  updated_at: Generated<Timestamp>
  user_id: string
  /** Grows by one with each change; an update that expects an older one finds no row. */
  version: Generated<number>
}

/** What users write; they go with their author. */
export interface Posts {
  author_id: string
  body: string
  created_at: Generated<Timestamp>
  /** Set when the post was withdrawn; its comments stay with it. */
  deleted_at: Timestamp | null
  id: Generated<string>
  /** Null while the post is a draft that only its author sees. */
  published_at: Timestamp | null
  title: string
  updated_at: Generated<Timestamp>
  /** Grows by one with each change; an update that expects an older one finds no row. */
  version: Generated<number>
}

/** Which products are shown in which categories. */
export interface ProductCategories {
  category_id: string
  created_at: Generated<Timestamp>
  product_id: string
}

/** What can be bought. */
export interface Products {
  created_at: Generated<Timestamp>
  /** ISO 4217, for instance EUR. */
  currency: Generated<string>
  description: Generated<string>
  id: Generated<string>
  /** False hides the product from the catalogue; old orders still refer to it. */
  is_active: Generated<boolean>
  name: string
  /** The price of one piece in the smallest unit of the currency (cents). */
  price_minor: number
  /** Full text of name (weight A) and description (weight B), in English. */
  search_vector: GeneratedAlways<string>
  /** The stock keeping unit: the key that the warehouse knows. */
  sku: string
  /** Pieces that can still be sold; what orders have taken is already gone from it. */
  stock: Generated<number>
  updated_at: Generated<Timestamp>
  /** Grows by one with each change; an update that expects an older one finds no row. */
  version: Generated<number>
}

/** What was sold of each product, without cancelled orders, as of the last refresh. */
export interface ProductSales {
  currency: GeneratedAlways<string | null>
  last_ordered_at: GeneratedAlways<Timestamp | null>
  orders: GeneratedAlways<Int8 | null>
  pieces: GeneratedAlways<Int8 | null>
  product_id: GeneratedAlways<string | null>
  revenue_minor: GeneratedAlways<Numeric | null>
}

/** When each materialized view was refreshed for the last time. */
export interface StatisticsRefreshes {
  duration_ms: number
  /** The server's time just before the refresh: what was committed until then is in it. */
  refreshed_at: Timestamp
  view_name: string
}

/** What a user tells about themselves; at most one row for each user. */
export interface UserProfiles {
  bio: string | null
  created_at: Generated<Timestamp>
  location: string | null
  /** Settings of the user interface; always an object. */
  preferences: Generated<Json>
  updated_at: Generated<Timestamp>
  user_id: string
  website: string | null
}

/** People who can log in. */
export interface Users {
  created_at: Generated<Timestamp>
  /** Set when the account was deleted; the row stays for the orders that refer to it. */
  deleted_at: Timestamp | null
  /** As the person typed it; unique whatever its case, also among deleted users. */
  email: string
  id: Generated<string>
  /** False while a member of staff has locked the account; says nothing about deletion. */
  is_active: Generated<boolean>
  last_login_at: Timestamp | null
  name: string
  /** A self-describing hash ($scrypt$…); never the password. */
  password_hash: string
  role: Generated<UserRole>
  updated_at: Generated<Timestamp>
  /** The public handle; unique whatever its case, also among deleted users. */
  username: string
  /** Grows by one with each change; an update that expects an older one finds no row. */
  version: Generated<number>
}

export interface DB {
  categories: Categories
  comments: Comments
  likes: Likes
  order_items: OrderItems
  orders: Orders
  posts: Posts
  product_categories: ProductCategories
  product_sales: ProductSales
  products: Products
  statistics_refreshes: StatisticsRefreshes
  user_profiles: UserProfiles
  users: Users
}

/** What a violation may name as its constraint: constraints of all kinds and unique indexes. */
export type ConstraintName =
  | 'categories_name_check'
  | 'categories_parent_check'
  | 'categories_parent_id_fkey'
  | 'categories_pkey'
  | 'categories_slug_check'
  | 'categories_slug_key'
  | 'comments_author_id_fkey'
  | 'comments_body_check'
  | 'comments_pkey'
  | 'comments_post_id_fkey'
  | 'likes_pkey'
  | 'likes_post_id_fkey'
  | 'likes_user_id_fkey'
  | 'order_items_order_id_fkey'
  | 'order_items_order_id_product_id_key'
  | 'order_items_pkey'
  | 'order_items_product_id_fkey'
  | 'order_items_quantity_check'
  | 'order_items_unit_price_minor_check'
  | 'orders_currency_check'
  | 'orders_idempotency_key_check'
  | 'orders_idempotency_key_key'
  | 'orders_pkey'
  | 'orders_total_minor_check'
  | 'orders_user_id_fkey'
  | 'orders_version_check'
  | 'posts_author_id_fkey'
  | 'posts_body_check'
  | 'posts_pkey'
  | 'posts_title_check'
  | 'posts_version_check'
  | 'product_categories_category_id_fkey'
  | 'product_categories_pkey'
  | 'product_categories_product_id_fkey'
  | 'product_sales_key'
  | 'products_currency_check'
  | 'products_description_check'
  | 'products_name_check'
  | 'products_pkey'
  | 'products_price_minor_check'
  | 'products_sku_check'
  | 'products_sku_key'
  | 'products_stock_check'
  | 'products_version_check'
  | 'statistics_refreshes_duration_ms_check'
  | 'statistics_refreshes_pkey'
  | 'user_profiles_bio_check'
  | 'user_profiles_location_check'
  | 'user_profiles_pkey'
  | 'user_profiles_preferences_check'
  | 'user_profiles_user_id_fkey'
  | 'user_profiles_website_check'
  | 'users_email_check'
  | 'users_email_key'
  | 'users_name_check'
  | 'users_password_hash_check'
  | 'users_pkey'
  | 'users_username_check'
  | 'users_username_key'
  | 'users_version_check'
